"""How far the training of a stage has come, read from the files that nnU-Net leaves in a fold's folder."""

from __future__ import annotations

import enum
from pathlib import Path

from nnunetv2_unimrseg.utils.files import file_problem, has_zip_directory


class TrainingState(str, enum.Enum):
    """States of one fold, in the order in which they are passed."""

    NONE = "no"
    STARTED = "in progress"
    UNVALIDATED = "trained, not validated"
    FINISHED = "final"


def training_state(fold_folder: Path) -> TrainingState:
    """Return the state of a folder `fold_X`; a folder that does not exist is `NONE`.

    A final checkpoint that is not whole does not count. Where no checkpoint is, the training is `STARTED` all the same:
    continuing it says what is wrong, and nothing is trained anew over what a copy may restore.
    """
    if has_zip_directory(fold_folder / "checkpoint_final.pth"):
        validated = file_problem(fold_folder / "validation" / "summary.json") is None
        return TrainingState.FINISHED if validated else TrainingState.UNVALIDATED
    if any((fold_folder / f"checkpoint_{name}.pth").is_file() for name in ("final", "latest", "best")):
        return TrainingState.STARTED
    return TrainingState.NONE
