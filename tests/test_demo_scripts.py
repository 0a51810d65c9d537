"""The demo's scripts without any training: setting patients aside, leaving files out, the figure."""

from __future__ import annotations

import dataclasses
import itertools
import json

import demo_data
import demo_figure
import numpy as np
import pytest
import SimpleITK
from evaluations import made_up
from matplotlib.colors import to_rgb
from report_phantom import phantom_evaluation

from nnunetv2_unimrseg.data.phantom import LABELS, MODALITIES, write_phantom_dataset
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.files import write_evaluation

COMPLETE = "FLAIR+T1+T1ce+T2"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "Dataset900_Phantom"
    write_phantom_dataset(folder, 7, 2, (20, 24, 22), (3.0, 2.0, 3.0))
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return phantom_evaluation(tmp_path_factory.mktemp("phantom"), 3, shape=(24, 28, 22), spacing=(2.0, 3.0, 4.0))


def test_every_fifth_patient_is_set_aside_and_one_at_least():
    assert demo_data.unseen_patients([f"p{number}" for number in range(9, -1, -1)]) == ["p4", "p9"]
    assert demo_data.unseen_patients(list("fedcba")) == ["e"]
    with pytest.raises(UserError, match="found 5"):
        demo_data.unseen_patients(list("abcde"))


def test_a_split_dataset_is_one_that_nnunet_accepts(phantom, tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    target = demo_data.split_dataset(phantom, tmp_path)
    description = json.loads((target / "dataset.json").read_text())
    assert description["numTraining"] == 6
    assert [file.name for file in (target / "labelsTs").iterdir()] == ["phantom_004.nii.gz"]
    assert len(list((target / "imagesTs").iterdir())) == 4
    verify_dataset_integrity(str(target), num_processes=1)
    with pytest.raises(UserError, match="already there"):
        demo_data.split_dataset(phantom, tmp_path)


@pytest.mark.parametrize(
    ("channels", "message"),
    [(["CT"], "Nothing can be missing"), ([f"MR {number}" for number in range(11)], "2047 subsets")],
)
def test_datasets_whose_subsets_the_demo_cannot_evaluate_are_refused_before_training(
    phantom, tmp_path, channels, message
):
    source = tmp_path / "Dataset001_Other"
    source.mkdir()
    description = json.loads((phantom / "dataset.json").read_text())
    description["channel_names"] = {str(number): name for number, name in enumerate(channels)}
    (source / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match=message):
        demo_data.split_dataset(source, tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, capsys):
    assert demo_data.main(["split", str(tmp_path), str(tmp_path)]) == 2
    assert "DatasetXXX_Name" in capsys.readouterr().err


@pytest.mark.parametrize("num_modalities", [2, 3, 4, 10])
def test_patients_lack_something_else_each_time_and_never_everything(num_modalities):
    missing = [demo_data.missing_modalities(number, num_modalities) for number in range(30)]
    assert {len(channels) for channels in missing} == set(range(1, num_modalities))
    assert set().union(*missing) == set(range(num_modalities))
    assert all(one != other for one, other in itertools.pairwise(missing))


def test_incomplete_patients_really_lack_the_files_that_are_named(phantom, tmp_path, capsys):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "of_an_earlier_run_0000.nii.gz").touch()
    assert demo_data.main(["incomplete", str(phantom), str(folder)]) == 0
    assert capsys.readouterr().out == "unseen_000: without FLAIR\nunseen_001: without T1, T1ce\n"
    there = {"unseen_000": [1, 2, 3], "unseen_001": [0, 3]}
    names = {f"{patient}_{channel:04d}.nii.gz" for patient, channels in there.items() for channel in channels}
    assert {file.name for file in folder.iterdir()} == names
    for name in names:
        assert (folder / name).resolve() == (phantom / "imagesTs" / name).resolve()


def test_an_unseen_patient_who_lacks_a_file_to_begin_with_is_named(phantom, tmp_path, capsys):
    dataset = tmp_path / "dataset"
    (dataset / "imagesTs").mkdir(parents=True)
    (dataset / "dataset.json").write_text((phantom / "dataset.json").read_text())
    for channel in (0, 1, 3):
        (dataset / "imagesTs" / f"anna_{channel:04d}.nii.gz").touch()
    assert demo_data.main(["incomplete", str(dataset), str(tmp_path / "input")]) == 2
    assert "anna must have every modality, found 3" in capsys.readouterr().err
    assert not (tmp_path / "input").exists()


def test_figure_shows_the_subset_of_median_dice_for_some_numbers_of_modalities():
    made = made_up(["A", "B", "C"], ["x", "y"], num_cases=2)
    order = {"A": 0.1, "B": 0.3, "C": 0.2, "A+B": 0.6, "A+C": 0.4, "B+C": 0.5, "A+B+C": 0.7}
    scored = dataclasses.replace(made, scores=made.scores.assign(dice=made.scores["subset"].map(order)))
    assert demo_figure.typical_incomplete_subsets(scored) == ["B+C", "C"]
    many = demo_figure.typical_incomplete_subsets(made_up([f"m{number}" for number in range(7)], num_cases=1))
    assert [name.count("+") + 1 for name in many] == [6, 4, 1]


def shown_labels(axis):
    """Return the RGBA picture that lies on an image."""
    return axis.images[1].get_array()


def test_figure_has_the_modalities_the_reference_and_true_predictions_of_the_first_two_patients(evaluation):
    figure = demo_figure.draw(evaluation)
    subsets = [COMPLETE, *demo_figure.typical_incomplete_subsets(evaluation)]
    rows = np.array(figure.axes).reshape(2, len(MODALITIES) + 1 + len(subsets))
    for row, entry in zip(rows, evaluation.settings["cases"], strict=False):
        assert row[0].get_ylabel() == entry["case"]
        assert [axis.get_title() for axis in row[:5]] == [*MODALITIES, "reference"]
        reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(entry["label"]))
        position = np.count_nonzero(reference, axis=(1, 2)).argmax()
        shown = [reference]
        for axis, name in zip(row[5:], subsets, strict=True):
            mine = evaluation.scores.query("case == @entry['case'] and subset == @name")
            assert axis.get_title().endswith(f"\nDice {100 * mine['dice'].mean():.1f}")
            assert axis.get_xlabel().removeprefix("on ") in name.split("+")
            path = evaluation.prediction_path(entry["case"], name)
            shown.append(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
        for axis, segmentation in zip(row[4:], shown, strict=True):
            assert np.count_nonzero(shown_labels(axis)[..., 3]) == np.count_nonzero(segmentation[position])


def test_figure_of_overlapping_regions_shows_the_smaller_on_the_larger(evaluation):
    regions = {"whole": [1, 2, 3], "core": [2, 3]}
    settings = {**evaluation.settings, "labels": list(regions), "label_values": regions}
    scores = evaluation.scores.replace({"label": dict(zip(list(LABELS)[1:3], regions, strict=True))})
    scores = scores[scores["label"].isin(regions)]
    figure = demo_figure.draw(dataclasses.replace(evaluation, settings=settings, scores=scores))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(regions)
    colours = {name: to_rgb(patch.get_facecolor()) for name, patch in zip(regions, legend.get_patches(), strict=True)}
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(evaluation.settings["cases"][0]["label"]))
    labels = reference[np.count_nonzero(reference, axis=(1, 2)).argmax()]
    picture = shown_labels(figure.axes[len(MODALITIES)])
    for name, values in (("whole", [1]), ("core", [2, 3])):
        same = np.abs(picture[..., :3] / 255 - colours[name]).max(axis=-1) < 0.01
        assert np.count_nonzero(same & (picture[..., 3] > 0)) == np.isin(labels, values).sum() > 0


def test_figure_shows_the_slice_with_most_labels_not_the_one_where_most_is_ignored(evaluation, tmp_path):
    entry = evaluation.settings["cases"][0]
    label = SimpleITK.ReadImage(entry["label"])
    reference = SimpleITK.GetArrayFromImage(label)
    expected = np.count_nonzero(reference[np.count_nonzero(reference, axis=(1, 2)).argmax()])
    assert not reference[0].any()
    reference[0] = 4
    ignoring = SimpleITK.GetImageFromArray(reference)
    ignoring.CopyInformation(label)
    SimpleITK.WriteImage(ignoring, str(tmp_path / "label.nii.gz"))
    settings = {**evaluation.settings, "cases": [{**entry, "label": str(tmp_path / "label.nii.gz")}]}
    figure = demo_figure.draw(dataclasses.replace(evaluation, settings=settings))
    assert np.count_nonzero(shown_labels(figure.axes[len(MODALITIES)])[..., 3]) == expected > 0


def test_figure_of_a_finished_evaluation_is_written_and_patients_without_predictions_are_passed_over(
    evaluation, tmp_path, capsys
):
    written = write_evaluation(evaluation, evaluation.folder)
    figure = tmp_path / "demo.png"
    failed = written.prediction_path("phantom_000", COMPLETE)
    failed.rename(tmp_path / failed.name)
    assert demo_figure.main([str(written.folder), str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    shown = {axis.get_ylabel() for axis in demo_figure.draw(written).axes}
    (tmp_path / failed.name).rename(failed)
    assert shown == {"", "phantom_001", "phantom_002"}
    assert demo_figure.main([str(tmp_path), str(figure)]) == 2
    assert "unimrseg evaluate" in capsys.readouterr().err
