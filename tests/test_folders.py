"""What is said when nnU-Net's folders or a dataset in them are not there."""

from __future__ import annotations

import pytest

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import RAW, VARIABLES, find_dataset, require_folders

PREPROCESSED, RESULTS = "nnUNet_preprocessed", "nnUNet_results"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.mark.parametrize(
    ("unset", "words"),
    [
        (VARIABLES, "nnUNet_raw, nnUNet_preprocessed and nnUNet_results are not set"),
        (VARIABLES[:2], "nnUNet_raw and nnUNet_preprocessed are not set"),
        (VARIABLES[:1], "nnUNet_raw is not set"),
    ],
)
def test_all_variables_that_are_not_set_are_one_sentence(folders, monkeypatch, unset, words):
    for variable in unset:
        monkeypatch.delenv(variable)
    with pytest.raises(UserError, match=words):
        require_folders(*VARIABLES)


def test_planning_is_advised_for_raw_datasets_only(folders, monkeypatch):
    with pytest.raises(UserError, match=r"not in nnUNet_preprocessed .* not in nnUNet_raw \(.*\) either"):
        find_dataset(7, PREPROCESSED)
    (folders / RAW / "Dataset007_Raw").mkdir()
    with pytest.raises(UserError, match="`unimrseg plan -d 7` makes it"):
        find_dataset(7, PREPROCESSED)
    monkeypatch.delenv(RAW)
    with pytest.raises(UserError, match="not in nnUNet_raw, which is not set, either"):
        find_dataset(7, PREPROCESSED)
    (folders / PREPROCESSED / "Dataset007_Raw").mkdir()
    assert find_dataset(7, PREPROCESSED) == "Dataset007_Raw"


def test_training_is_advised_for_planned_datasets_only(folders):
    with pytest.raises(UserError) as not_planned:
        find_dataset(7, RESULTS)
    assert "unimrseg train" not in str(not_planned.value)
    (folders / PREPROCESSED / "Dataset007_Raw").mkdir()
    with pytest.raises(UserError, match="No model of it is trained yet: `unimrseg train 7 "):
        find_dataset(7, RESULTS)
