"""`unimrseg plan`: what it checks before computing, and which configurations it preprocesses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import trained

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.cli.plan import configurations_to_preprocess
from nnunetv2_unimrseg.data.phantom import write_phantom_dataset
from nnunetv2_unimrseg.data.training_cases import check_raw_dataset
from nnunetv2_unimrseg.errors import UserError

DATASET = "Dataset007_Tiny"
PLANS = {
    "configurations": {
        "2d": {"data_identifier": "P_2d"},
        "3d_fullres": {"data_identifier": "P_3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
}


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """A raw dataset of two cases of four modalities."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_raw" / DATASET
    trained.write_cases(folder / "imagesTr", folder / "labelsTr", ("case_a", "case_b"))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    return folder


def refused(capsys, *arguments: str) -> str:
    assert main(("plan", *arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_a_complete_dataset_passes(raw):
    assert len(check_raw_dataset(raw).cases) == 2


def test_what_cannot_be_used_is_listed_and_nothing_is_written(raw, capsys):
    (raw / "imagesTr" / "case_a_0002.nii.gz").unlink()
    (raw / "labelsTr" / "case_b.nii.gz").unlink()
    shutil.copy(raw / "imagesTr" / "case_b_0000.nii.gz", raw / "imagesTr" / "case_b_0007.nii.gz")
    shutil.copy(raw / "imagesTr" / "case_b_0000.nii.gz", raw / "imagesTr" / "notes.nii.gz")
    message = refused(capsys, "-d", "7", "--complete-only")
    assert "has 3 problems; nothing was computed" in message
    assert "case_b_0007.nii.gz: there is no channel 0007" in message
    assert "notes.nii.gz: the name has no channel suffix" in message
    assert "--complete-only was given, but modalities are missing in 1 case: case_a (T1)." in message
    assert not list((raw.parents[1] / "nnUNet_preprocessed").iterdir())


def test_the_number_of_cases_must_agree(raw):
    (raw / "dataset.json").write_text(json.dumps({**tiny.dataset_json(), "numTraining": 3}))
    with pytest.raises(UserError, match="numTraining = 3, but 2 cases have images, labelled or not: case_a, case_b"):
        check_raw_dataset(raw)


def test_listed_files_must_exist(raw):
    cases = {"x": {"images": [f"imagesTr/case_a_{channel:04d}.nii.gz" for channel in range(3)], "label": "gone.nii.gz"}}
    (raw / "dataset.json").write_text(json.dumps({**tiny.dataset_json(), "numTraining": 1, "dataset": cases}))
    with pytest.raises(UserError, match=r"case 'x': the label .*gone.nii.gz: there is no such file"):
        check_raw_dataset(raw)


def test_damaged_descriptions_are_named(raw, capsys):
    (raw / "dataset.json").write_text('{"labels": ')
    assert "cannot be read as JSON" in refused(capsys, "-d", "7")
    (raw / "dataset.json").write_text("{}")
    message = refused(capsys, "-d", "7")
    assert "dataset.json has 4 mistakes:" in message
    for key in ("channel_names", "labels", "numTraining", "file_ending"):
        assert f'"{key}" is absent' in message
    (raw / "dataset.json").unlink()
    assert "There is no file" in refused(capsys, "-d", "7")


def test_one_modality_is_refused(raw, capsys):
    (raw / "dataset.json").write_text(json.dumps(tiny.dataset_json(("T1",))))
    assert "Nothing can be missing" in refused(capsys, "-d", "7")


def test_unknown_datasets_and_configurations_name_the_nearest(raw, capsys):
    assert f"Did you mean '{DATASET}'?" in refused(capsys, "-d", "Dataset007_Tyni")
    assert "neither a dataset's number nor its name" in refused(capsys, "-d", "brain")
    assert "Did you mean '3d_fullres'?" in refused(capsys, "-d", "7", "-c", "3d_fulres")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-np", "0"), "-np must be at least 1"),
        (("-gpu_memory_target", "-1"), "more than 0 GB"),
        (("-overwrite_target_spacing", "3", "0", "3"), "three positive numbers"),
        (("--base-features", "33"), "from 1 to 32"),
        (("-overwrite_plans_name", "nnUNetPlans"), "nnU-Net's own plans"),
        (("--preprocess-only", "--clean", "--no_pp"), "--clean, --no_pp cannot be given with it"),
        (("--preprocess-only",), "There are no plans 'nnUNetUniMRSegPlans'"),
    ],
)
def test_impossible_values_are_refused_before_the_fingerprint(raw, capsys, flags, message):
    assert message in refused(capsys, "-d", "7", *flags)
    assert not list((raw.parents[1] / "nnUNet_preprocessed").iterdir())


def test_a_damaged_fingerprint_asks_for_clean(raw, capsys):
    folder = raw.parents[1] / "nnUNet_preprocessed" / DATASET
    folder.mkdir()
    (folder / "dataset_fingerprint.json").write_text("{")
    assert "--clean" in refused(capsys, "-d", "7")


def test_the_target_spacing_is_that_of_the_plans(folders, capsys):
    raw, preprocessed = (folders.with_name(name) for name in ("raw", "preprocessed"))
    write_phantom_dataset(raw / DATASET, num_training=2, num_unseen=0, shape=(24, 24, 24), seed=1)
    planned = ("-d", "7", "-c", "3d_fullres", "-gpu_memory_target", "1", "-np", "1", "--no_pp")
    assert main(("plan", *planned, "-overwrite_target_spacing", "4", "2.5", "3")) == 0
    plans = json.loads((preprocessed / DATASET / "nnUNetUniMRSegPlans.json").read_text())
    at = [plans["transpose_forward"].index(axis) for axis in range(3)]
    spacing = plans["configurations"]["3d_fullres"]["spacing"]
    assert [spacing[axis] for axis in at] == [4.0, 2.5, 3.0]
    assert (
        "later: unimrseg plan -d 7 -overwrite_plans_name nnUNetUniMRSegPlans -c 3d_fullres --preprocess-only\n"
        in capsys.readouterr().out
    )


def test_nnunets_own_check_is_not_for_incomplete_cases(raw, capsys):
    trained.write_cases(raw / "imagesTr", raw / "labelsTr", ("case_c", "case_d"))
    (raw / "dataset.json").write_text(json.dumps({**tiny.dataset_json(), "numTraining": 4}))
    (raw / "imagesTr" / "case_a_0002.nii.gz").unlink()
    assert "--verify_dataset_integrity is nnU-Net's check" in refused(capsys, "-d", "7", "--verify_dataset_integrity")


def test_configurations_to_preprocess():
    assert configurations_to_preprocess(PLANS, None) == ["2d", "3d_fullres"]
    assert configurations_to_preprocess(PLANS, ["3d_fullres", "3d_cascade_fullres"]) == ["3d_fullres"]
    assert configurations_to_preprocess(PLANS, ["3d_cascade_fullres"]) == ["3d_cascade_fullres"]
    with pytest.raises(UserError, match="3d_lowres was not planned"):
        configurations_to_preprocess(PLANS, ["2d", "3d_lowres"])
