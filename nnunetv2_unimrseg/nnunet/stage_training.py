"""The training of one stage in one fold, by nnU-Net's training command in a process of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_unimrseg.nnunet import torchrun_training, training_process
from nnunetv2_unimrseg.nnunet.discovery import VARIABLE, append_extension_folder
from nnunetv2_unimrseg.nnunet.paths import result_folder
from nnunetv2_unimrseg.nnunet.training_state import TrainingState, training_state
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.processes import run_child

FLAGS_BY_STATE = {
    TrainingState.NONE: [],
    TrainingState.STARTED: ["--c"],
    TrainingState.UNVALIDATED: ["--val"],
}
"""Further flags of nnUNetv2_train, by the state of the stage."""


@dataclass(frozen=True)
class StageTraining:
    """What nnUNetv2_train is told to train; another process can be given it.

    Attributes:
        dataset: its whole name.
        configuration: name of the configuration.
        plans: name of the plans.
        fold: as `fold_name` returns it.
        stage: section of the configuration whose trainer trains, such as "stage1".
        device: "cuda", "cpu" or "mps".
        num_gpus: GPUs of this machine that train together.
        npz: whether the validation keeps its probabilities.
        in_process_group: whether this process is one of those that torchrun started to train together.
    """

    dataset: str
    configuration: str
    plans: str
    fold: str
    stage: str
    device: str = "cuda"
    num_gpus: int = 1
    npz: bool = False
    in_process_group: bool = False

    @property
    def trainer(self) -> str:
        """Name of the trainer."""
        return TRAINER_OF_SECTION[self.stage]

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return result_folder(self.dataset, self.trainer, self.plans, self.configuration) / f"fold_{self.fold}"

    def state(self) -> TrainingState:
        """Return how far it has come."""
        return training_state(self.folder)

    def arguments(self) -> list[str]:
        """Return the arguments of nnUNetv2_train for a new training."""
        words = [self.dataset, self.configuration, self.fold, "-tr", self.trainer, "-p", self.plans]
        words += ["-device", self.device, "-num_gpus", str(self.num_gpus)]
        return [*words, "--npz"] if self.npz else words

    def run(self, state: TrainingState) -> int:
        """Begin the training, continue it, or validate what it made, by its state; return the exit code.

        A negative exit code is that of a signal. What a failure means is said on stderr.
        """
        words = [*self.arguments(), *FLAGS_BY_STATE[state]]
        if not (self.in_process_group and int(os.environ["RANK"])):
            print(f"nnUNetv2_train {' '.join(words)}", flush=True)
        module = torchrun_training if self.in_process_group else training_process
        environment = {**os.environ, VARIABLE: append_extension_folder(os.environ.get(VARIABLE))}
        code = run_child([sys.executable, "-c", training_process.code_that_runs(module.__name__), *words], environment)
        if code not in (0, training_process.USER_ERROR_EXIT_CODE):
            print(f"unimrseg train: {self.trainer} {_what_happened(code)}", file=sys.stderr)
        return code


def _what_happened(code: int) -> str:
    if code > 0:
        return (
            f"failed (exit code {code}); its message is above. Once its cause is removed, the same command goes "
            "on from the last checkpoint."
        )
    return (
        f"was ended by signal {-code} (9: often for lack of memory). Running the same command again goes on "
        "from the last checkpoint."
    )
