"""A seeded training that was stopped after an epoch and resumed ends with the weights of one that was not stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import CONFIGURATION, PLANS, Workspace, make_planned_workspace
from test_incomplete_training_commands import take_away

from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

pytestmark = pytest.mark.integration

EPOCHS = 3


class Stopped(Exception):
    """What ends a training after an epoch."""


@pytest.fixture(scope="module")
def planned_workspace(tmp_path_factory) -> Workspace:
    return make_planned_workspace(tmp_path_factory.mktemp("seeded") / "nnunet", 7, take_away)


def make(workspace: Workspace, trainer_class: type, *, continues: bool = False, **settings: object):
    folder = workspace.preprocessed / workspace.dataset_name
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    own = {
        "num_epochs": EPOCHS, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "save_every": 1,
        "seed": 5, **settings,
    }  # fmt: skip
    if trainer_class in (UniMRSegStage2Trainer, UniMRSegStage3Trainer):
        own |= {"start_from": "scratch", "pairs_every": 2}
    plans["configurations"][CONFIGURATION]["unimrseg"] = {trainer_class.section: own}
    plans["continue_training"] = continues
    dataset_json = json.loads((folder / "dataset.json").read_text())
    return trainer_class(plans, CONFIGURATION, "all", dataset_json, torch.device("cpu"))


def train(trainer, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """Train, or stop after so many epochs; return the weights."""
    end_epoch = trainer.on_epoch_end

    def end_or_stop() -> None:
        end_epoch()
        if trainer.current_epoch == stop_after:
            raise Stopped

    trainer.on_epoch_end = end_or_stop
    if stop_after is None:
        trainer.run_training()
    else:
        with pytest.raises(Stopped):
            trainer.run_training()
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "trainer_class",
    [UniMRSegStage1Trainer, UniMRSegStage2Trainer, UniMRSegStage3Trainer, UniMRSegModalityDropoutTrainer],
)
def test_a_resumed_training_ends_as_one_that_was_not_stopped(planned_workspace, tmp_path, monkeypatch, trainer_class):
    for variable in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(planned_workspace.root / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def folder(name: str) -> None:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / name))

    folder("whole")
    whole = train(make(planned_workspace, trainer_class))
    folder("stopped")
    stopped = make(planned_workspace, trainer_class)
    assert not equal(train(stopped, stop_after=1), whole)
    resumed = make(planned_workspace, trainer_class, continues=True)
    resumed.load_checkpoint(str(Path(stopped.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    assert equal(train(resumed), whole)
    folder("other")
    assert not equal(train(make(planned_workspace, trainer_class, seed=6)), whole)
