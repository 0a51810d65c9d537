"""The table of a planned dataset's training cases: which modalities each has, and whether it has a label.

`unimrseg plan` writes it beside the plans. Where there is none, as after nnU-Net's own preprocessing, every case is
complete and labelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.errors import UserError, counted
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.utils.files import read_json, write_json

CASE_TABLE_NAME = "unimrseg_cases.json"
MOST_SUBSETS_SHOWN = 20

_FORMAT = 1


@dataclass(frozen=True)
class TrainingCase:
    """What a training case has.

    Attributes:
        available: the names of its modalities, in channel order; at least one.
        labelled: whether there is a label.
    """

    available: tuple[str, ...]
    labelled: bool


def read_case_table(preprocessed_dataset_folder: Path) -> dict[str, TrainingCase]:
    """Read what each training case has.

    Args:
        preprocessed_dataset_folder: `nnUNet_preprocessed/DatasetXXX_Name`.

    Returns:
        The cases by name; `{}` where there is no table, and a case that it lacks is complete and labelled.

    Raises:
        UserError: when the table is damaged.
    """
    path = preprocessed_dataset_folder / CASE_TABLE_NAME
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}")
        return {name: _training_case(entry) for name, entry in content["cases"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({type(error).__name__}: {error}). Run `unimrseg plan` with --clean, which "
            "writes it anew."
        ) from None


def _training_case(entry: Mapping[str, Any]) -> TrainingCase:
    available, labelled = entry["available"], entry["labelled"]
    if not (isinstance(available, list) and available and isinstance(labelled, bool)):
        raise ValueError(f"an entry is {entry}")
    return TrainingCase(tuple(map(str, available)), labelled)


def write_case_table(preprocessed_dataset_folder: Path, cases: Mapping[str, TrainingCase]) -> None:
    """Write what each training case has, in one step.

    Raises:
        UserError: when it cannot be written.
    """
    entries = {
        name: {"available": list(case.available), "labelled": case.labelled} for name, case in sorted(cases.items())
    }
    write_json(preprocessed_dataset_folder / CASE_TABLE_NAME, {"format": _FORMAT, "cases": entries})


def count_cases(cases: Sequence[TrainingCase], num_modalities: int) -> dict[str, int]:
    """Return the number of `cases`, and how many of them are `labelled` and `incomplete` (lack a modality)."""
    return {
        "cases": len(cases),
        "labelled": sum(case.labelled for case in cases),
        "incomplete": sum(len(case.available) < num_modalities for case in cases),
    }


def describe_case_table(cases: Sequence[TrainingCase], modalities: Modalities) -> str:
    """Return a table of the subsets that cases have, the widest first: how many cases, how many of them labelled."""
    counts = count_cases(cases, len(modalities))
    subsets = Counter(case.available for case in cases)
    labelled = Counter(case.available for case in cases if case.labelled)
    ordered = sorted(subsets, key=lambda names: (-len(names), -subsets[names], names))
    shown = ["+".join(names) for names in ordered[:MOST_SUBSETS_SHOWN]]
    width = max(len("modalities"), *map(len, shown))
    lines = [
        f"{counted(counts['cases'], 'training case')}: {counts['labelled']} labelled, "
        f"{counts['incomplete']} with missing modalities",
        f"  {'modalities':<{width}}  cases  labelled",
    ]
    lines += [
        f"  {name:<{width}}  {subsets[names]:>5}  {labelled[names]:>8}"
        for name, names in zip(shown, ordered, strict=False)
    ]
    left = len(ordered) - len(shown)
    return "\n".join([*lines, *([f"  and {counted(left, 'more subset')}"] if left else [])])
