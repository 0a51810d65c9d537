"""Which cases an evaluation takes, compared with nnU-Net's own split, and how often it reads a checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import trained
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_unimrseg.data.case_table import TrainingCase, write_case_table
from nnunetv2_unimrseg.evaluation.cases import validation_cases
from nnunetv2_unimrseg.evaluation.evaluate import evaluate
from nnunetv2_unimrseg.evaluation.expected_dice import expected_dice
from nnunetv2_unimrseg.inference.options import InferenceOptions

NAMES = [f"case_{number}" for number in range(10)]


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """A model of two folds, and its dataset, whose splits_final.json lists two folds of three cases."""
    trained.write_dataset(tmp_path, NAMES, [NAMES[5:2:-1], NAMES[7:]])
    for variable in ("raw", "preprocessed", "results"):
        (tmp_path / variable).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    return trained.write_model(tmp_path / "results", folds=("0", "1"))


def nnunets_validation_cases(preprocessed: Path, fold: str) -> list[str]:
    trainer = object.__new__(nnUNetTrainer)  # its __init__ makes folders
    trainer.fold = fold if fold == "all" else int(fold)
    trainer.dataset_class = trainer.folder_with_segs_from_previous_stage = None
    trainer.preprocessed_dataset_folder_base = str(preprocessed)
    trainer.preprocessed_dataset_folder = str(preprocessed / "nnUNetPlans_3d_fullres")
    trainer.print_to_log_file = lambda *_: None
    return list(trainer.do_split()[1])


@pytest.mark.parametrize("fold", ["0", "1", "2", "4", "all"])  # nnU-Net splits at random for folds that are not listed
def test_a_fold_is_evaluated_on_the_cases_that_nnunet_validates_it_with(model, tmp_path, fold):
    plans, dataset_json = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
    cases = [case.name for case in validation_cases(plans, trained.CONFIGURATION, dataset_json, [fold])]
    expected = nnunets_validation_cases(tmp_path / "preprocessed" / trained.DATASET, fold)
    assert cases == (sorted(expected) if fold == "all" else expected)
    assert len(cases) == {"0": 3, "1": 3, "2": 2, "4": 2, "all": 10}[fold]


def test_unlabelled_cases_are_not_evaluated(model, tmp_path):
    plans, dataset_json = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
    available = tuple(dataset_json["channel_names"].values())
    table = {name: TrainingCase(available, name != NAMES[2]) for name in NAMES}
    write_case_table(tmp_path / "preprocessed" / trained.DATASET, table)
    cases = validation_cases(plans, trained.CONFIGURATION, dataset_json, ["all"])
    assert [case.name for case in cases] == [name for name in NAMES if name != NAMES[2]]


def test_a_checkpoint_is_read_to_check_it_to_predict_and_to_store_the_result(model, monkeypatch):
    reads: Counter[str] = Counter()
    load = torch.load

    def count(path, *arguments, **keywords):
        reads[Path(path).parent.name] += 1
        return load(path, *arguments, **keywords)

    monkeypatch.setattr(torch, "load", count)
    options = InferenceOptions(device="cpu", use_mirroring=False, show_progress=False)

    def read_by(call: Callable[[], object]) -> list[int]:
        reads.clear()
        call()
        return [reads["fold_0"], reads["fold_1"]]

    run = partial(evaluate, model, subsets=["complete"], options=options)
    assert read_by(lambda: run([0, 1])) == [3, 3]  # so that the weights of one fold at a time are in memory
    assert read_by(lambda: run([0, 1])) == [2, 2]  # nothing is left to predict
    assert read_by(lambda: run([0])) == [2, 0]
    assert read_by(lambda: expected_dice(model, [0, 1])) == [1, 1]
