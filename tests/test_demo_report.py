"""The demo's scripts without any training: splitting, leaving files out, Dice, the table and the figure."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import demo_data
import demo_report

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities, all_subsets
from nnunetv2_unimrseg.phantom import write_phantom_dataset


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "Dataset900_Phantom"
    write_phantom_dataset(folder, 7, 2, (20, 24, 22), (3.0, 2.0, 3.0))
    return folder


def write_predictions(dataset, folder, label_of):
    """Write, for every unseen patient and subset, `label_of(subset, reference)`."""
    folder.mkdir()
    modalities = Modalities(["FLAIR", "T1", "T1ce", "T2"])
    for file in sorted((dataset / "labelsTs").iterdir()):
        reference = SimpleITK.ReadImage(str(file))
        array = SimpleITK.GetArrayFromImage(reference)
        for subset in all_subsets(4):
            image = SimpleITK.GetImageFromArray(label_of(subset, array).astype(np.uint8))
            image.CopyInformation(reference)
            name = demo_data.subset_case(file.name.removesuffix(".nii.gz"), modalities, subset)
            SimpleITK.WriteImage(image, str(folder / f"{name}.nii.gz"))


def test_dice_of_known_masks():
    values = np.array([0, 0, 1, 1, 1, 0])
    assert demo_report.dice(values == 1, values == 1) == 1
    assert demo_report.dice(values == 1, values == 0) == 0
    assert demo_report.dice(np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)) == 0.5
    assert np.isnan(demo_report.dice(values == 7, values == 8))


def test_class_dice_scores_each_label_and_all_as_one():
    reference, prediction = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 1])
    assert demo_report.class_dice(reference, prediction, [1, 2]) == [0.5, 0.0, 1.0]
    assert demo_report.class_dice(reference, prediction, [1]) == [0.5]


def test_a_class_that_no_one_has_is_left_out_of_the_means():
    dice = np.array([[[0.4, np.nan, 0.5], [0.8, np.nan, 0.7]]] * 3)
    scores = demo_report.Scores(
        Modalities(["A", "B"]), tuple(all_subsets(2)), ("p", "q"), ("x", "y", demo_report.ALL_CLASSES), dice
    )
    assert np.allclose(scores.by_subset, [[0.6, np.nan, 0.6, 0.6]] * 3, equal_nan=True)
    assert demo_report.make_table(scores).values[0] == ["60.0", "-", "60.0", "60.0"]


def test_the_table_has_every_subset_fewest_first_and_the_averages_last(phantom, tmp_path):
    def worse_the_more_is_missing(subset, reference):
        return reference if all(subset) else np.zeros_like(reference)

    write_predictions(phantom, tmp_path / "predictions", worse_the_more_is_missing)
    table = demo_report.make_table(demo_report.score(phantom, tmp_path / "predictions"))
    filled = [row.count(demo_report.AVAILABLE) for row in table.circles]
    assert filled == [1] * 4 + [2] * 6 + [3] * 4 + [4]
    assert table.values[-1] == ["100.0"] * 5
    assert table.values[0] == ["0.0"] * 5
    assert table.averages == {"mean of the 14 incomplete": ["0.0"] * 5, "mean of all 15": ["6.7"] * 5}
    lines = demo_report.as_text(table).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 1 + 15 + 2 + 2
    assert len(demo_report.as_markdown(table).splitlines()) == 2 + 15 + 2


def test_the_command_writes_table_csv_and_figure_and_names_the_figure_last(phantom, tmp_path, capsys):
    write_predictions(phantom, tmp_path / "predictions", lambda subset, reference: reference)
    output = tmp_path / "report"
    assert demo_report.main([str(phantom), str(tmp_path / "predictions"), str(output)]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith(str(output / "demo.png"))
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "●" in (output / "dice_by_subset.md").read_text()
    with (output / "dice_by_subset.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 * 2 * 4
    assert {row["dice"] for row in rows} == {"1.0000"}


def test_predictions_that_are_not_there_are_named(phantom, tmp_path, capsys):
    write_predictions(phantom, tmp_path / "predictions", lambda subset, reference: reference)
    (tmp_path / "predictions" / "unseen_001__T1+T2.nii.gz").unlink()
    assert demo_report.main([str(phantom), str(tmp_path / "predictions"), str(tmp_path / "report")]) == 2
    assert "unseen_001__T1+T2.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_figure_shows_one_typical_subset_for_each_number_of_modalities():
    import demo_figure

    subsets = all_subsets(3)
    dice = np.linspace(0.1, 0.7, len(subsets))[:, None, None]
    scores = demo_report.Scores(Modalities(["A", "B", "C"]), tuple(subsets), ("p",), ("x",), dice)
    assert demo_figure.typical_incomplete_subsets(scores) == [subsets[4], subsets[1]]


def test_subset_inputs_really_lack_the_files(phantom, tmp_path):
    demo_data.link_subsets(phantom, tmp_path / "input")
    names = {file.name for file in (tmp_path / "input").iterdir()}
    assert len(names) == 2 * 4 * 8
    assert {name for name in names if name.startswith("unseen_000__FLAIR+T1ce_")} == {
        "unseen_000__FLAIR+T1ce_0000.nii.gz",
        "unseen_000__FLAIR+T1ce_0002.nii.gz",
    }
    linked = (tmp_path / "input" / "unseen_000__FLAIR+T1ce_0002.nii.gz").resolve()
    assert linked == (phantom / "imagesTs" / "unseen_000_0002.nii.gz").resolve()


def test_modality_names_become_file_names():
    subset = (True, True)
    assert demo_data.subset_label(Modalities(["T1 c/e", "PET"]), subset) == "T1-c-e+PET"
    assert demo_data.subset_label(Modalities(["T1/", "T1 "]), subset) == "channel0+channel1"


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
    ("change", "message"),
    [
        ({"channel_names": {"0": "CT"}}, "Nothing can be missing"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "whole"),
        ({"labels": {"background": 0, "lesion": 1, "ignore": 2}}, "ignore"),
    ],
)
def test_datasets_that_the_demo_cannot_score_are_refused(phantom, tmp_path, change, message):
    source = tmp_path / "Dataset001_Other"
    source.mkdir()
    description = json.loads((phantom / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**description, **change}))
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match=message):
        demo_data.split_dataset(source, tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, capsys):
    assert demo_data.main(["split", str(tmp_path), str(tmp_path)]) == 2
    assert "DatasetXXX_Name" in capsys.readouterr().err
