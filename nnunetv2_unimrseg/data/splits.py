"""Which cases train and which validate, where several cases may be of one patient and some have no label."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from nnunetv2_unimrseg.errors import UserError, counted

FOLDS = 5
"""Folds of the split that nnU-Net draws."""

PATIENT_EXAMPLE = '"unimrseg": {"patient": "(BraTS-GLI-[0-9]+)"}'


def patient_pattern(dataset_json: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Return the pattern whose first group is the patient in a case's name; None where each case is a patient.

    Raises:
        UserError: when dataset.json's "unimrseg" entry holds no usable pattern.
    """
    entry = dataset_json.get("unimrseg", {})
    text = entry.get("patient") if isinstance(entry, Mapping) else entry
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except (re.error, TypeError) as error:
        raise UserError(
            f'dataset.json\'s "unimrseg" is {entry!r}, whose pattern cannot be used ({error}). It must name the '
            f"patient in a case's name, for example {PATIENT_EXAMPLE}"
        ) from None
    if pattern.groups < 1:
        raise UserError(
            f"dataset.json's pattern for the patient, {text!r}, has no group. Put the part of a case's name that is "
            f"the patient in parentheses, for example {PATIENT_EXAMPLE}"
        )
    return pattern


def patient_name(case: str, pattern: re.Pattern[str] | None) -> str:
    """Return the patient of a case, matched from the start of its name.

    Raises:
        UserError: when the pattern does not match.
    """
    if pattern is None:
        return case
    match = pattern.match(case)
    if match is None or match[1] is None:
        raise UserError(
            f"dataset.json's pattern for the patient, {pattern.pattern!r}, does not match the case '{case}'. "
            "Correct it, or remove it if each case is a patient of its own."
        )
    return match[1]


def draw_splits(labelled: Iterable[str], pattern: re.Pattern[str] | None) -> list[dict[str, list[str]]]:
    """Draw nnU-Net's five folds over the patients of labelled cases; it is the same at each call.

    Where each case is a patient, this is the split that nnU-Net draws of these cases.

    Args:
        labelled: names of the labelled cases.
        pattern: see `patient_pattern`.

    Returns:
        For each fold the cases under "train" and "val", as in splits_final.json.

    Raises:
        UserError: when there are fewer patients than folds.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # imports scikit-learn, which is slow

    patients = {case: patient_name(case, pattern) for case in sorted(labelled)}
    names = sorted(set(patients.values()))
    if len(names) < FOLDS:
        raise UserError(
            f"There are labelled cases of {counted(len(names), 'patient')}, too few for nnU-Net's {FOLDS} folds. "
            "Train on all of them (fold 'all'), or say in splits_final.json which are for training and which for "
            "validation."
        )
    return [
        {part: [case for case, patient in patients.items() if patient in members] for part, members in split.items()}
        for split in generate_crossval_split(names, seed=12345, n_splits=FOLDS)
    ]


def join_unlabelled(
    training: Sequence[str],
    validation: Sequence[str],
    unlabelled: Collection[str],
    pattern: re.Pattern[str] | None,
) -> list[str]:
    """Return the cases of training and all unlabelled ones but those of patients that are in the validation."""
    validated = {patient_name(case, pattern) for case in validation}
    joining = (case for case in set(unlabelled) - set(training) if patient_name(case, pattern) not in validated)
    return [*training, *sorted(joining)]
