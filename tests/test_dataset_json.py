"""The one check of dataset.json: every mistake at once, each with the line to write."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import check_dataset_json, read_dataset_json
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer

GOOD = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "tumour": 1},
    "numTraining": 6,
    "file_ending": ".nii.gz",
}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
ABSENT = object()
MUST_HOLD = " (the label files must hold these values, too)"


def content_with(**changed) -> dict:
    return {key: value for key, value in {**GOOD, **changed}.items() if value is not ABSENT}


def mistakes_of(content, *, raw: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        check_dataset_json(content, "D/dataset.json", raw=raw)
    return str(caught.value)


def labels(**values) -> dict:
    return {"background": 0, **values}


CHANNELS = [
    ({"T1": 0, "FLAIR": 1}, "is reversed", {"0": "T1", "1": "FLAIR"}),
    ({"FLAIR": "1", "T1": "0"}, "is reversed", {"0": "T1", "1": "FLAIR"}),
    (["T1", "FLAIR"], "is a list", {"0": "T1", "1": "FLAIR"}),
    ({"0": "T1", "2": "FLAIR"}, "has the channel numbers 0, 2, but", {"0": "T1", "1": "FLAIR"}),
    ({"2": "FLAIR", "1": "T1"}, "has the channel numbers 1, 2, but", {"0": "T1", "1": "FLAIR"}),
    ({"a": "T1", "b": "FLAIR"}, 'has "a", "b" where channel numbers', {"0": "T1", "1": "FLAIR"}),
    ({"0": "T1", "00": "FLAIR"}, 'numbers several channels alike: "0", "00"', {"0": "T1", "1": "FLAIR"}),
    (
        {"0": "T1", "1": 2},
        'The name of channel "1" in "channel_names" is 2, but it must be text',
        {"0": "T1", "1": "2"},
    ),
    ({"T1": 0, "1": "FLAIR"}, "is 0, but it must be text", {"0": "T1", "1": "FLAIR"}),
    ({"1": "CT", "0": "T1"}, "in the order 1, 0, and nnU-Net", {"0": "T1", "1": "CT"}),
]


@pytest.mark.parametrize(("given", "found", "right"), CHANNELS)
def test_channels(given, found, right):
    message = mistakes_of(content_with(channel_names=given))
    assert found in message
    assert message.endswith(f'\n    Write: "channel_names": {json.dumps(right)}')
    check_dataset_json(content_with(channel_names=right), "it", raw=True)


@pytest.mark.parametrize("given", [5, None, "T1, FLAIR", [{"0": "T1"}], ABSENT])
def test_channels_that_cannot_be_told_get_an_example(given):
    message = mistakes_of(content_with(channel_names=given))
    assert message.startswith('D/dataset.json has 1 mistake:\n  - "channel_names" is ')
    assert 'Write, for example: "channel_names": {"0": "FLAIR", "1": "T1"}' in message


@pytest.mark.parametrize(("given", "there"), [({"0": "T1"}, "1 modality (T1)."), ({}, "0 modalities.")])
def test_one_modality_keeps_its_message(given, there):
    message = mistakes_of(content_with(channel_names=given))
    assert f"- Nothing can be missing: this dataset has {there} UniMRSeg needs at least two entries" in message


def test_an_old_modality_that_nnunet_would_count_must_go():
    """nnU-Net counts the input channels by `len(dataset_json["modality"])` where that is there."""
    assert 'Remove "modality".' in mistakes_of(content_with(modality="MRI"))
    check_dataset_json(content_with(modality={"0": "T1", "1": "FLAIR"}), "it", raw=True)


def test_modalities_never_end_in_a_traceback():
    for given, *_ in CHANNELS[:-1]:  # the last one is the planner's matter
        with pytest.raises(UserError, match='Write: "channel_names"'):
            Modalities.from_dataset_json({"channel_names": given})
    for given in (None, 5, {}, {"channel_names": None}, {"channel_names": {}}, {"modality": [1]}, []):
        with pytest.raises(UserError):
            Modalities.from_dataset_json(given)
    assert Modalities.from_dataset_json({"channel_names": {1: "B", 0: "A"}}).names == ("A", "B")


@pytest.mark.parametrize(
    ("given", "found", "right"),
    [
        (["background", "tumour"], "is a list", labels(tumour=1)),
        (["tumour", "ignore", "edema"], "is a list", labels(tumour=1, edema=2, ignore=3)),
        ({"0": "background", "1": "tumour"}, "is reversed", labels(tumour=1)),
        ({"tumour": 1}, 'has no "background"', labels(tumour=1)),
        ({"Background": 0, "tumour": 1}, 'calls the background "Background"', labels(tumour=1)),
        ({"bg": 0, "tumour": 1}, 'calls the background "bg"', labels(tumour=1)),
        (labels(tumour="1"), 'The label "tumour" has the value "1", but it must be a whole number', labels(tumour=1)),
        (labels(tumour=1.0), "has the value 1.0, but it must be a whole number", labels(tumour=1)),
        (labels(tumour=1.5), "has the value 1.5, but it must be a whole number", labels(tumour=1)),
        (labels(tumour=None), "has the value null, but it must be a whole number", labels(tumour=1)),
        (labels(tumour=True), "has the value true, but it must be a whole number", labels(tumour=1)),
        (labels(tumour=[]), 'The label "tumour" has no value', labels(tumour=1)),
        ({"background": [0], "tumour": 1}, "has the value [0], but it must be 0", labels(tumour=1)),
        (labels(tumour=1, ignore=[2]), 'The label "ignore" has the value [2]', labels(tumour=1, ignore=2)),
        (labels(tumour=1, ignore="2"), 'The label "ignore" has the value "2"', labels(tumour=1, ignore=2)),
    ],
)  # fmt: skip
def test_labels_written_wrongly(given, found, right):
    message = mistakes_of(content_with(labels=given))
    assert found in message
    assert message.startswith("D/dataset.json has 1 mistake:")
    assert message.endswith(f'\n    Write: "labels": {json.dumps(right)}')
    check_dataset_json(content_with(labels=right), "it", raw=True)


@pytest.mark.parametrize(
    ("given", "found", "right"),
    [
        ({"tumour": 0, "edema": 1}, 'has no "background"', labels(tumour=1, edema=2)),
        ({"background": 1, "tumour": 0}, 'The label "background" has the value 1, but it must be 0', labels(tumour=1)),
        ({"background": 1, "tumour": 2}, 'The label "background" has the value 1, but it must be 0', labels(tumour=1)),
        (labels(tumour=-1), "has the value -1, but values must not be negative", labels(tumour=1)),
        (labels(a=1, b=3, c=7), "have the values 0, 1, 3, 7, but nnU-Net needs", labels(a=1, b=2, c=3)),
        (labels(a=10**9), "have the values 0, 1000000000, but nnU-Net needs", labels(a=1)),
        (labels(a=1, b=1), 'The labels "a" and "b" have the value 1 together', labels(a=1, b=2)),
        (labels(a=0), 'The labels "background" and "a" have the value 0 together', labels(a=1)),
        (labels(a=1, ignore=255), "has the value 255, but it must be the highest", labels(a=1, ignore=2)),
        (labels(ignore=1, a=2), "has the value 1, but it must be the highest", labels(ignore=2, a=1)),
        (labels(a=1, ignore=1), "has the value 1, but it must be the highest", labels(a=1, ignore=2)),
        (labels(a=1, b=3, ignore=4), "have the values 0, 1, 3, but", labels(a=1, b=2, ignore=3)),
    ],
)
def test_labels_of_wrong_values(given, found, right):
    message = mistakes_of(content_with(labels=given))
    assert found in message
    assert message.startswith("D/dataset.json has 1 mistake:")
    assert message.endswith(f'\n    Write: "labels": {json.dumps(right)}{MUST_HOLD}')
    check_dataset_json(content_with(labels=right), "it", raw=True)


@pytest.mark.parametrize("given", [None, 5, {}, [{"name": "tumour"}], ABSENT])
def test_labels_that_cannot_be_told_get_an_example(given):
    message = mistakes_of(content_with(labels=given))
    assert message.startswith('D/dataset.json has 1 mistake:\n  - "labels" is ')
    assert message.endswith('Write, for example: "labels": {"background": 0, "tumour": 1}')


@pytest.mark.parametrize(
    ("order", "found"),
    [
        (ABSENT, 'is absent, but "labels" has regions'),
        (3, "is 3, but"),
        ([1, 2], "has 2 values, but there are 3 regions besides the background: whole, core, enhancing"),
        ([0, 1, 2, 3], "has 4 values, but there are 3 regions"),
        ([1, 2, 7], "has 7, but its values must be those of labels: 1, 2, 3"),
        (["1", 2, 3.0], 'is ["1", 2, 3.0], but its values must be whole numbers'),
    ],
)
def test_the_order_of_regions(order, found):
    message = mistakes_of(content_with(labels=REGIONS, regions_class_order=order))
    assert f'has 1 mistake:\n  - "regions_class_order" {found}' in message
    assert message.endswith('\n    Write: "regions_class_order": [1, 2, 3]')


def test_regions_that_cover_earlier_ones_are_to_be_listed_otherwise():
    small_first = labels(core=2, whole=[1, 2])
    message = mistakes_of(content_with(labels=small_first))
    assert 'List the regions in "labels" from the largest to the smallest' in message
    assert "Write:" not in message


def test_values_of_regions():
    message = mistakes_of(content_with(labels=labels(whole=["1", 2], core=2), regions_class_order=[1, 2]))
    assert 'The label "whole" has the value "1", but values must be whole numbers' in message
    assert message.endswith('Write: "labels": {"background": 0, "whole": [1, 2], "core": 2}')
    message = mistakes_of(content_with(labels=labels(whole=[1, -2], core=2), regions_class_order=[1, 2]))
    assert "must not be negative" in message
    assert 'Write, for example: "labels": {"background": 0, "whole": [1, 2], "core": 2}' in message
    message = mistakes_of(content_with(labels=labels(whole=[1, 2], core=2, ignore=9), regions_class_order=[1, 2]))
    right = '{"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}'
    assert message.endswith(f'Write: "labels": {right}{MUST_HOLD}')


@pytest.mark.parametrize(
    ("given", "found", "write"),
    [
        ("6", 'is "6", but it must be a whole number', ": 6"),
        (6.0, "is 6.0, but it must be a whole number", ": 6"),
        (6.5, "is 6.5, but it must be a whole number", "(example): 20"),
        (True, "is true, but it must be a whole number", "(example): 20"),
        (0, "is 0, but it must be at least 1", "(example): 20"),
        (ABSENT, "is absent", "(example): 20"),
    ],
)
def test_the_number_of_cases(given, found, write):
    message = mistakes_of(content_with(numTraining=given))
    start = "Write, for example" if write.startswith("(example)") else "Write"
    assert f'"numTraining" {found}' in message
    assert message.endswith(f'{start}: "numTraining": {write.split(": ")[1]}')
    check_dataset_json(content_with(numTraining=given), "it")  # only planning takes it


def test_the_number_of_cases_is_counted_where_that_can_be(tmp_path):
    cases = {name: {"images": ["a", "b"], "label": "c"} for name in "xyz"}
    assert 'Write: "numTraining": 3' in mistakes_of(content_with(numTraining=ABSENT, dataset=cases))
    (tmp_path / "imagesTr").mkdir()
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "notes.txt"):
        (tmp_path / "imagesTr" / name).touch()
    (tmp_path / "dataset.json").write_text(json.dumps(content_with(numTraining="two")))
    with pytest.raises(UserError, match=r'Write: "numTraining": 2$'):
        read_dataset_json(tmp_path / "dataset.json", raw=True)


@pytest.mark.parametrize(
    ("given", "found", "right"),
    [
        ("nii.gz", "must start with a dot", ".nii.gz"),
        ("NRRD", "must start with a dot", ".NRRD"),
        ("*.nii.gz", "must be only the end of the file names", ".nii.gz"),
        (".nii.gzip", "no reader of nnU-Net takes. It takes .bmp, .gipl,", ".nii.gz"),
        (".mhd", "no reader of nnU-Net takes", ".mha"),
    ],
)
def test_file_endings(given, found, right):
    message = mistakes_of(content_with(file_ending=given))
    assert f'"file_ending" is "{given}"' in message
    assert found in message
    assert message.endswith(f'\n    Write: "file_ending": "{right}"')


@pytest.mark.parametrize("given", [5, None, "", ABSENT, ".xyz"])
def test_file_endings_that_cannot_be_told_get_an_example(given):
    assert 'Write, for example: "file_ending": ".nii.gz"' in mistakes_of(content_with(file_ending=given))


@pytest.mark.parametrize(
    ("given", "right"), [("SimpleITKO", "SimpleITKIO"), ("tiff3dio", "Tiff3DIO"), ("xyz", "None"), (None, "None")]
)
def test_readers(given, right):
    message = mistakes_of(content_with(overwrite_image_reader_writer=given))
    assert "There are: NaturalImage2DIO, NibabelIO, NibabelIOWithReorient, SimpleITKIO, Tiff3DIO." in message
    assert f'Write: "overwrite_image_reader_writer": "{right}"' in message


@pytest.mark.parametrize(
    ("entry", "found", "write"),
    [
        ({"images": ["x", "y"]}, 'lacks "label"', '{"images": ["x", "y"], "label": "labelsTr/a.nii.gz"}'),
        ({"label": "z"}, 'lacks "images"', '["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "z"}'),
        ({"images": "x", "label": "z"}, "must be a list of file names", '{"images": ["x"], "label": "z"}'),
        ({"images": [1, 2], "label": "z"}, "must be a list of file names", '"label": "z"}'),
        ({"images": ["x", "y"], "label": ["z"]}, "the name of one file", '{"images": ["x", "y"], "label": "z"}'),
        ("x", 'must be an object with "images" and "label"', '"label": "labelsTr/a.nii.gz"}'),
    ],
)  # fmt: skip
def test_listed_cases(entry, found, write):
    good = {"images": ["x", "y"], "label": "z"}
    message = mistakes_of(content_with(dataset={"a": entry, "b": good}))
    assert 'the case "a"' in message.replace("The case", "the case")
    assert found in message
    assert '"a": ' in message.splitlines()[-1]
    assert message.endswith(write)


def test_listed_cases_as_a_list():
    message = mistakes_of(content_with(dataset=[{"image": "imagesTr/p1.nii.gz", "label": "labelsTr/p1.nii.gz"}]))
    assert '"dataset" is a list, but it must be an object' in message
    assert 'Write, for example: "dataset": {"p1": {"images": ["imagesTr/p1_0000.nii.gz", ' in message


VALID = {
    "plain": {},
    "old modality": {"channel_names": ABSENT, "modality": {"0": "T1", "1": "FLAIR"}},
    "channels in another order": {"channel_names": {"1": "FLAIR", "0": "T1"}},
    "channels of four digits": {"channel_names": {"0000": "T1", "0001": "FLAIR"}},
    "equal names": {"channel_names": {"0": "noNorm", "1": "noNorm"}},
    "explicit cases": {"dataset": {"a": {"images": ["$DATA/a.nii.gz", "../b.nii.gz"], "label": "/c.nii.gz"}}},
    "labels in another order": {"labels": {"edema": 2, "background": 0, "core": 1}},
    "a list of one value": {"labels": labels(tumour=[1])},
    "ignore": {"labels": labels(tumour=1, ignore=2)},
    "no ignore": {"labels": labels(tumour=1, ignore=None)},
    "regions": {"labels": REGIONS, "regions_class_order": [1, 2, 3]},
    "regions and ignore": {"labels": {**REGIONS, "ignore": 4}, "regions_class_order": [1, 2, 3]},
    "regions with gaps": {"labels": labels(whole=[1, 2, 4], core=[4]), "regions_class_order": [1, 4]},
    "order without regions": {"regions_class_order": "none"},
    "png": {"file_ending": ".png"},
    "nrrd": {"file_ending": ".nrrd"},
    "tif": {"file_ending": ".tif"},
    "capitals": {"file_ending": ".NII.GZ"},
    "reader by ending": {"overwrite_image_reader_writer": "None"},
    "an ending that a named reader takes": {"file_ending": ".dcm", "overwrite_image_reader_writer": "SimpleITKIO"},
    "an ending without dot in front": {"file_ending": "-n4.mha", "overwrite_image_reader_writer": "SimpleITKIO"},
    "unused keys": {"name": "Brain", "licence": "CC", "tensorImageSize": "3D", "training": [], "numTest": 0},
}


@pytest.mark.parametrize("changed", VALID.values(), ids=VALID)
def test_what_is_right_is_accepted(changed):
    content = content_with(**changed)
    before = json.dumps(content)
    check_dataset_json(content, "it", raw=True)
    check_dataset_json(content, "it")
    assert json.dumps(content) == before
    LabelManager(content["labels"], content.get("regions_class_order"))


def test_beside_a_model_only_what_is_used_there_matters():
    content = content_with(numTraining=ABSENT, file_ending=".mhd", overwrite_image_reader_writer="Gone", dataset=[])
    check_dataset_json(content, "it")
    message = mistakes_of({}, raw=False)
    assert message.startswith("D/dataset.json has 3 mistakes:")
    assert all(f'"{key}" is absent' in message for key in ("channel_names", "labels", "file_ending"))


def test_misspelt_keys_are_recognised():
    content = {
        "channelNames": {"0": "T1", "1": "T2"},
        "Labels": labels(a="1"),
        "numtraining": 2,
        "file_endings": ".png",
    }
    message = mistakes_of(content)
    assert message.startswith("D/dataset.json has 5 mistakes:")
    assert '"Labels" is no key of dataset.json; it is called "labels".' in message
    for line in ('"channel_names": {"0": "T1", "1": "T2"}', '"labels": {"background": 0, "a": 1}', '"numTraining": 2'):
        assert f"    Write: {line}\n" in message


def test_all_mistakes_are_one_error():
    """One line of the corrected labels mends all that is wrong with them."""
    content = content_with(
        channel_names={"T1": 0, "FLAIR": 1}, labels={"edema": "1", "core": -3}, numTraining="6", file_ending="nii.gz"
    )
    assert mistakes_of(content) == (
        "D/dataset.json has 6 mistakes:\n"
        '  - "channel_names" is reversed: the channel numbers must stand before the names.\n'
        '    Write: "channel_names": {"0": "T1", "1": "FLAIR"}\n'
        '  - "labels" has no "background", which must be there with the value 0.\n'
        '  - The label "edema" has the value "1", but it must be a whole number without quotation marks.\n'
        '  - The label "core" has the value -3, but values must not be negative.\n'
        f'    Write: "labels": {{"background": 0, "edema": 2, "core": 1}}{MUST_HOLD}\n'
        '  - "numTraining" is "6", but it must be a whole number, the number of training cases.\n'
        '    Write: "numTraining": 6\n'
        '  - "file_ending" is "nii.gz", but it must start with a dot.\n'
        '    Write: "file_ending": ".nii.gz"'
    )


@pytest.mark.parametrize("content", [None, [], 5, "text"])
def test_no_object(content):
    with pytest.raises(UserError, match="must hold a JSON object"):
        check_dataset_json(content, "D/dataset.json")


WRONG = {**tiny.dataset_json(), "labels": ["background", "tumour"], "numTraining": "2", "file_ending": "nii.gz"}


def test_plan_shows_all_mistakes_and_writes_nothing(tmp_path, monkeypatch, capsys):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    path = tmp_path / "nnUNet_raw" / "Dataset007_Tiny" / "dataset.json"
    path.parent.mkdir()
    path.write_text(json.dumps(WRONG))
    assert main(["plan", "-d", "7"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"unimrseg: error: {path} has 3 mistakes:\n")
    assert captured.err.count("Write: ") == 3
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_train_checks_it_first(tmp_path, monkeypatch, capsys):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    path = tmp_path / "nnUNet_preprocessed" / "Dataset007_Tiny" / "dataset.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(WRONG))
    assert main(["train", "7", "3d_fullres", "0"]) == 2
    assert f"{path} has 2 mistakes:\n" in capsys.readouterr().err
    assert not (tmp_path / "nnUNet_results").exists()


def test_trainers_say_it_before_nnunet_makes_a_folder(monkeypatch):
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer.__init__", pytest.fail)
    plans = {**tiny.plans(), "continue_training": False}
    with pytest.raises(UserError, match=r"^dataset.json of Dataset998_Tiny in nnUNet_preprocessed has 2 mistakes:\n"):
        UniMRSegStage1Trainer(plans, "3d_fullres", 0, WRONG, torch.device("cpu"))
