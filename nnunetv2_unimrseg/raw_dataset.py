"""Checking a raw nnU-Net dataset before anything is computed from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json

MOST_NAMED_PROBLEMS = 20

_CHANNEL_SUFFIX = re.compile(r"_(\d{4})$")


def check_raw_dataset(folder: Path) -> int:
    """Check dataset.json and that every training case has its label and all its modalities; reads no image.

    Args:
        folder: `nnUNet_raw/DatasetXXX_Name`.

    Returns:
        The number of training cases.

    Raises:
        UserError: for a damaged or incomplete dataset.json, fewer than two modalities, and one error that lists every
            training case that lacks files.
    """
    description = read_dataset_json(folder / "dataset.json", raw=True)
    modalities = Modalities.from_dataset_json(description)
    if "dataset" in description:
        num_cases, problems = _problems_of_listed_cases(folder, description["dataset"], modalities)
    else:
        num_cases, problems = _problems_of_folders(folder, description["file_ending"], modalities)
    if num_cases != description["numTraining"]:
        problems.append(f"dataset.json says numTraining = {description['numTraining']}, but there are {num_cases}")
    if problems:
        named = problems[:MOST_NAMED_PROBLEMS]
        more = len(problems) - len(named)
        raise UserError(
            f"{folder} has {len(problems)} problem(s):\n  - "
            + "\n  - ".join(named)
            + (f"\n  - and {more} more" if more else "")
            + "\nModalities may be missing in new patients; training needs all of them in every training case."
        )
    return num_cases


def _problems_of_listed_cases(
    folder: Path, cases: Mapping[str, Mapping[str, Any]], modalities: Modalities
) -> tuple[int, list[str]]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    problems = []
    for case, files in get_filenames_of_train_images_and_targets(str(folder), {"dataset": cases}).items():
        if len(files["images"]) != len(modalities):
            problems.append(f"{case}: {len(files['images'])} images, but {len(modalities)} modalities")
        problems += [
            f"{case}: no file {file}" for file in (*files["images"], files["label"]) if not Path(file).is_file()
        ]
    return len(cases), problems


def _problems_of_folders(folder: Path, file_ending: str, modalities: Modalities) -> tuple[int, list[str]]:
    absent = [name for name in ("imagesTr", "labelsTr") if not (folder / name).is_dir()]
    if absent:
        return 0, [f"there is no folder {name}" for name in absent]
    channels: dict[str, set[int]] = {}
    problems = []
    for file in sorted((folder / "imagesTr").glob(f"*{file_ending}")):
        stem = file.name.removesuffix(file_ending)
        suffix = _CHANNEL_SUFFIX.search(stem)
        if suffix is None:
            problems.append(f"imagesTr/{file.name}: no channel suffix such as _0000 before {file_ending}")
        else:
            channels.setdefault(stem[: suffix.start()], set()).add(int(suffix[1]))
    for case, present in channels.items():
        missing = [f"_{number:04d} ({name})" for number, name in enumerate(modalities) if number not in present]
        unknown = [f"_{number:04d}" for number in sorted(present) if number >= len(modalities)]
        if missing:
            problems.append(f"{case}: lacks {', '.join(missing)}")
        if unknown:
            problems.append(f"{case}: {', '.join(unknown)} is beyond the {len(modalities)} modalities of dataset.json")
        if not (folder / "labelsTr" / f"{case}{file_ending}").is_file():
            problems.append(f"{case}: there is no labelsTr/{case}{file_ending}")
    return len(channels), problems
