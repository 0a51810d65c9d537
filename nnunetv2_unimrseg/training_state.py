"""How far the training of a stage has come, read from the files that nnU-Net leaves in a fold's folder."""

from __future__ import annotations

import enum
from pathlib import Path


class TrainingState(str, enum.Enum):
    """States of one fold, in the order in which they are passed."""

    NONE = "no"
    STARTED = "in progress"
    UNVALIDATED = "trained, not validated"
    FINISHED = "final"


def training_state(fold_folder: Path) -> TrainingState:
    """Return the state of a folder `fold_X`; a folder that does not exist is `NONE`."""
    if (fold_folder / "checkpoint_final.pth").is_file():
        validated = (fold_folder / "validation" / "summary.json").is_file()
        return TrainingState.FINISHED if validated else TrainingState.UNVALIDATED
    if any((fold_folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best")):
        return TrainingState.STARTED
    return TrainingState.NONE
