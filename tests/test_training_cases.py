"""The training cases of a raw dataset: all that is wrong with them is told before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import trained

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.data.case_table import TrainingCase
from nnunetv2_unimrseg.data.training_cases import check_raw_dataset
from nnunetv2_unimrseg.errors import UserError

NAMES = ("a", "b", "c")


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """A raw dataset of three good cases."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_raw" / "Dataset007_Tiny"
    trained.write_cases(folder / "imagesTr", folder / "labelsTr", NAMES)
    describe(folder)
    return folder


def describe(folder: Path, **changes: object) -> None:
    description = {**tiny.dataset_json(), "numTraining": len(NAMES), **changes}
    (folder / "dataset.json").write_text(json.dumps(description))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_raw_dataset(folder, show_progress=False)
    return str(caught.value)


def change(path: Path, edit) -> None:
    """Rewrite an image with its array edited, its geometry kept."""
    image = sitk.ReadImage(str(path))
    edited = sitk.GetImageFromArray(edit(sitk.GetArrayFromImage(image)))
    edited.CopyInformation(image)
    sitk.WriteImage(edited, str(path), True)


def test_good_cases_pass(raw, capsys):
    assert len(check_raw_dataset(raw).cases) == 3
    assert "Checking training cases" in capsys.readouterr().err


def test_every_problem_of_every_case_is_one_message_and_nothing_is_written(raw, capsys):
    images, labels = raw / "imagesTr", raw / "labelsTr"
    change(labels / "a.nii.gz", lambda label: np.where(label == 1, 255, label).astype(np.uint8))
    change(images / "b_0001.nii.gz", lambda image: image[::-1].copy())
    mirrored = sitk.Flip(sitk.ReadImage(str(images / "b_0001.nii.gz")), (True, False, False))
    sitk.WriteImage(mirrored, str(images / "b_0001.nii.gz"))
    tiny.write(labels / "c.nii.gz", np.zeros((14, 16, 17), np.uint8))
    change(images / "a_0003.nii.gz", lambda image: np.where(image > 0, np.nan, image).astype(np.float32))
    assert main(["plan", "-d", "7"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and "has 4 problems; nothing was computed" in message
    assert f"case 'a': {labels / 'a.nii.gz'} holds the value 255; the dataset's labels are 0, 1, 2." in message
    assert "case 'b': " in message and "b_0001.nii.gz differ in origin or direction" in message
    assert "c.nii.gz differ in shape: 14 x 16 x 18 and 14 x 16 x 17 voxels" in message
    assert "a_0003.nii.gz: cannot be used: it holds NaN or infinite values" in message
    assert not list((raw.parents[1] / "nnUNet_preprocessed").iterdir())


def test_values_that_cannot_be_normalised_are_refused_with_their_file(raw):
    path = raw / "imagesTr" / "b_0002.nii.gz"
    describe(raw, channel_names={str(number): name for number, name in enumerate(("CT", "PET", "MR", "T2"))})
    change(path, lambda image: np.where(image == 0, np.finfo(np.float32).min, image).astype(np.float32))
    message = refused(raw)
    assert f"case 'b': {path}: MR (channel 2) cannot be used: its values range from -3.40282e+38 to" in message
    assert "normalised by ZScoreNormalization they become NaN or infinite" in message
    assert "padded the image with the lowest float32 number" in message


def test_clipping_makes_padded_ct_harmless(raw):
    change(
        raw / "imagesTr" / "b_0000.nii.gz",
        lambda image: np.where(image == 0, np.finfo(np.float32).min, image).astype(np.float32),
    )
    assert len(check_raw_dataset(raw, show_progress=False).cases) == 3


def test_a_label_on_another_grid_is_refused_as_an_image_is(raw):
    label = sitk.ReadImage(str(raw / "labelsTr" / "b.nii.gz"))
    label.SetOrigin([position + 40 for position in label.GetOrigin()])
    sitk.WriteImage(label, str(raw / "labelsTr" / "b.nii.gz"))
    assert "labelsTr/b.nii.gz differ in origin or direction: their corners lie up to" in refused(raw)


def test_fractions_in_a_label_are_named(raw):
    change(raw / "labelsTr" / "a.nii.gz", lambda label: label.astype(np.float32) * 0.5)
    assert "a.nii.gz holds the value 0.5; the dataset's labels are 0, 1, 2" in refused(raw)


def test_regions_and_the_ignore_label_are_known(raw):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    describe(raw, labels=labels, regions_class_order=[1, 2])
    change(raw / "labelsTr" / "a.nii.gz", lambda label: np.where(label == 0, 3, label).astype(np.uint8))
    assert len(check_raw_dataset(raw, show_progress=False).cases) == 3


def test_hidden_files_are_named_since_nnunet_takes_them_for_scans(raw):
    for name in NAMES:
        (raw / "imagesTr" / f"._{name}_0000.nii.gz").touch()
    message = refused(raw)
    assert "3 problems" in message and "._a_0000.nii.gz is a hidden file, which nnU-Net takes for a scan" in message
    assert f"find '{raw / 'imagesTr'}' -name '._*' -delete" in message


def test_the_number_of_cases_names_those_there_are(raw):
    describe(raw, numTraining=6)
    assert "numTraining = 6, but 3 cases have images, labelled or not: a, b, c." in refused(raw)


def test_scans_and_labels_that_cannot_be_used_are_listed(raw):
    images, labels = raw / "imagesTr", raw / "labelsTr"
    (images / "a_0001.nii.gz").rename(images / "a_0001.NII.GZ")
    (images / "b_0001.nii.gz").unlink()
    (images / "b_0001.nii.gz").symlink_to("/unmounted/share/b.nii.gz")
    (labels / "c.nii.gz").rename(labels / "c.nii")
    whole = (images / "c_0002.nii.gz").read_bytes()
    (images / "c_0002.nii.gz").write_bytes(whole[: len(whole) // 2])
    message = refused(raw)
    assert "4 problems" in message and "a_0001.NII.GZ: ends with '.NII.GZ'" in message
    assert "b_0001.nii.gz: is a link to /unmounted/share/b.nii.gz" in message
    assert "case 'c': " in message and "c.nii: ends with '.nii'" in message
    assert "c_0002.nii.gz: cannot be used: it is truncated" in message


def test_absent_folders_and_empty_ones(raw):
    shutil.rmtree(raw / "labelsTr")
    assert f"there is no folder {raw / 'labelsTr'}" in refused(raw)
    (raw / "labelsTr").mkdir()
    for path in (raw / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", ".txt")))
    assert "holds no file that ends with '.nii.gz'" in refused(raw)


def test_listed_cases_may_lie_anywhere(raw, tmp_path):
    shutil.move(raw / "imagesTr", tmp_path / "elsewhere")
    cases = {
        name: {
            "images": [str(tmp_path / "elsewhere" / f"{name}_{channel:04d}.nii.gz") for channel in range(4)],
            "label": f"labelsTr/{name}.nii.gz",
        }
        for name in NAMES
    }
    describe(raw, dataset=cases)
    assert len(check_raw_dataset(raw, show_progress=False).cases) == 3
    (tmp_path / "elsewhere" / "a_0003.nii.gz").unlink()
    assert "a_0003.nii.gz: there is no such file" in refused(raw)


@pytest.mark.parametrize(("shape", "mistake"), [((20, 24, 3), None), ((20, 24, 4), "holds 4 channels")])
def test_colour_images_hold_all_channels_in_one_file(tmp_path, shape, mistake):
    from PIL import Image

    folder = tmp_path / "Dataset008_Colour"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(rng.integers(0, 2, shape[:2], np.uint8)).save(folder / "labelsTr" / f"{name}.png")
    channels = dict(zip("012", ("R", "G", "B"), strict=True))
    describe(folder, channel_names=channels, labels={"background": 0, "x": 1}, file_ending=".png")
    if mistake is None:
        assert len(check_raw_dataset(folder, show_progress=False).cases) == 3
    else:
        assert mistake in refused(folder)


def test_absent_and_blank_files_and_absent_labels_are_what_the_table_says(raw, capsys):
    trained.write_cases(raw / "imagesTr", raw / "labelsTr", ["d", "e"])
    describe(raw, numTraining=5)
    (raw / "imagesTr" / "a_0001.nii.gz").unlink()
    change(raw / "imagesTr" / "c_0003.nii.gz", lambda image: np.full_like(image, 3))
    (raw / "labelsTr" / "c.nii.gz").unlink()
    checked = check_raw_dataset(raw, show_progress=False)
    assert not checked.is_complete
    assert checked.table == {
        "a": TrainingCase(("CT", "T1", "T2"), True),
        "b": TrainingCase(tiny.NAMES, True),
        "c": TrainingCase(("CT", "PET", "T1"), False),
        "d": TrainingCase(tiny.NAMES, True),
        "e": TrainingCase(tiny.NAMES, True),
    }
    assert [case.label is None for case in checked.cases] == [False, False, True, False, False]
    assert "1 image of one single intensity, taken for absent: " in capsys.readouterr().out


def test_a_case_of_blank_images_only_is_refused(raw):
    for path in (raw / "imagesTr").glob("b_*"):
        change(path, np.zeros_like)
    assert "case 'b': no modality is available" in refused(raw)


def test_strictness_can_be_asked_for(raw):
    (raw / "imagesTr" / "a_0001.nii.gz").unlink()
    (raw / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(UserError) as caught:
        check_raw_dataset(raw, labelled_only=True, complete_only=True, show_progress=False)
    assert "--labelled-only was given, but there is no label of 1 case: b." in str(caught.value)
    assert "--complete-only was given, but modalities are missing in 1 case: a (PET)." in str(caught.value)


def test_a_label_of_another_name_does_not_make_its_case_unlabelled(raw):
    (raw / "labelsTr" / "b.nii.gz").rename(raw / "labelsTr" / "b_.nii.gz")
    assert "b_.nii.gz: is the label of no case, for no image is called b__XXXX.nii.gz" in refused(raw)
    shutil.copy(raw / "labelsTr" / "b_.nii.gz", raw / "labelsTr" / "b.nii.gz")
    assert check_raw_dataset(raw, show_progress=False).is_complete  # as in nnU-Net


def test_too_few_cases_with_a_modality_or_a_label_are_counted(raw):
    (raw / "imagesTr" / "a_0001.nii.gz").unlink()
    for name in ("b", "c"):
        (raw / "labelsTr" / f"{name}.nii.gz").unlink()
    message = refused(raw)
    assert "1 of 3 cases has a label; at least 2 must have one" in message
    assert "CT 3 (1 labelled), PET 2 (0 labelled), T1 3 (1 labelled), T2 3 (1 labelled). At least 3 must" in message


def test_listed_cases_may_lack_files_whose_names_are_numbered_and_labels(raw):
    for name in "de":
        trained.write_cases(raw / "imagesTr", raw / "labelsTr", [name])
    cases = {
        name: {
            "images": [f"imagesTr/{name}_{channel:04d}.nii.gz" for channel in range(4)],
            "label": f"labelsTr/{name}.nii.gz",
        }
        for name in (*NAMES, "d", "e")
    }
    cases["b"]["images"].pop(1)
    cases["c"]["label"] = ""
    describe(raw, dataset=cases, numTraining=5)
    table = check_raw_dataset(raw, show_progress=False).table
    assert table["b"] == TrainingCase(("CT", "T1", "T2"), True)
    assert [name for name, case in table.items() if not case.labelled] == ["c"]
    (raw / "imagesTr" / "b_0000.nii.gz").rename(raw / "imagesTr" / "scan.nii.gz")
    cases["b"]["images"][0] = "imagesTr/scan.nii.gz"
    describe(raw, dataset=cases, numTraining=5)
    assert "scan.nii.gz: the name has no channel suffix" in refused(raw)


def test_advice_holds_for_training_and_second_images_are_told(raw, capsys):
    path = raw / "imagesTr" / "b_0001.nii.gz"
    shutil.copy(path, path.with_name("b_0001.nii"))
    path.write_bytes(path.read_bytes()[:300])
    assert "Copy or convert it again, or leave the file or the case out." in refused(raw)
    assert "Left out 1 image of another ending, such as b_0001.nii" in capsys.readouterr().out
