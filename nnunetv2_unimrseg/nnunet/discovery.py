"""What nnU-Net needs to find the trainers of this package: the value of the variable nnUNet_extTrainer."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2_unimrseg.errors import UserError

VARIABLE = "nnUNet_extTrainer"


def extension_folder() -> Path:
    """Return the installed folder that nnUNet_extTrainer must list.

    Raises:
        UserError: when its path holds the separator of path lists, so that no such list can name it.
    """
    folder = Path(__file__).resolve().parents[1] / "nnunet_ext"
    if os.pathsep in str(folder):
        raise UserError(
            f"{VARIABLE} cannot name {folder}: a path in a list must not hold '{os.pathsep}'. "
            "Install nnunetv2-unimrseg in a folder without that character."
        )
    return folder


def append_extension_folder(current: str | None) -> str:
    """Return the list of folders `current` with the extension folder appended, unless it is in it already."""
    folder = str(extension_folder())
    folders = [entry for entry in (current or "").split(os.pathsep) if entry]
    return os.pathsep.join(folders if folder in folders else [*folders, folder])
