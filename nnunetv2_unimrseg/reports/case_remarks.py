"""The Dice to expect of a case, given its modalities, and warnings in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd

from nnunetv2_unimrseg.errors import counted, enumerated
from nnunetv2_unimrseg.evaluation.expected_dice import EvaluatedModel, expected_of_subset, weaknesses
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL, records

WEAK, FEW_CASES, NOT_EVALUATED = "weak", "few_cases", "not_evaluated"
"""Kinds of warnings."""

MOST_NAMED = 5
"""Labels that a warning names."""

Cases = Mapping[str, Mapping[str, Sequence[str]]]
"""The modalities of cases, by name: `{"available": [...], "missing": [...]}`."""


def expected_for_case(
    model: EvaluatedModel, available: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the Dice to expect of a case with these modalities.

    Returns:
        The rows of `expected_of_subset`, the mean over the labels last; and flags, each with `kind` and `text`. Both
        are empty where the model was not evaluated.
    """
    if model.evaluation is None:
        return [], []
    table = expected_of_subset(model.evaluation, available).drop(columns="subset")
    if table.empty:
        text = "what to expect is not known: this combination of modalities was not evaluated"
        return [], [{"kind": NOT_EVALUATED, "text": text}]
    flags = [{"kind": WEAK, "text": text} for text in _reasons(table)]
    if table["few_cases"].iloc[-1]:
        cases = counted(int(table["n"].iloc[-1]), "case")
        flags.append({"kind": FEW_CASES, "text": f"evaluated on {cases} only"})
    return records(table), flags


def expected_for_cases(
    model: EvaluatedModel, cases: Cases
) -> dict[tuple[str, ...], tuple[list[dict[str, Any]], list[dict[str, str]]]]:
    """Return `expected_for_case` by available modalities; each subset is computed once."""
    distinct = dict.fromkeys(tuple(case["available"]) for case in cases.values())
    return {available: expected_for_case(model, available) for available in distinct}


def _reasons(table: pd.DataFrame) -> list[str]:
    """Return each reason why a subset is weak, with the labels for which it is."""
    reasons: dict[str, dict[str, str]] = {}
    for row in cast("list[dict[str, Any]]", table.to_dict("records")):
        for reason, value in weaknesses(row).items():
            reasons.setdefault(reason, {})[row["label"]] = value
    return [f"{reason}: {_describe_labels(values, len(table) > 1)}" for reason, values in reasons.items()]


def _describe_labels(values: Mapping[str, str], several: bool) -> str:
    """Name labels with their values; the mean over several labels only where it is the only one."""
    labels = {name: value for name, value in values.items() if not several or name != MEAN_LABEL}
    labels = labels or {"mean of the labels": values[MEAN_LABEL]}
    return enumerated([f"{name} {value}" for name, value in labels.items()], MOST_NAMED)


def remarks(model: EvaluatedModel, cases: Cases) -> dict[str, str]:
    """Return the text to print after each case's modalities; "" where nothing is known."""
    expected = expected_for_cases(model, cases)
    return {name: _remark(*expected[tuple(case["available"])]) for name, case in cases.items()}


def _remark(rows: Sequence[Mapping[str, Any]], flags: Sequence[Mapping[str, str]]) -> str:
    expected = ""
    if rows and rows[-1]["dice"] is not None:
        mean, low, high = (f"{100 * rows[-1][name]:.1f}" for name in ("dice", "dice_low", "dice_high"))
        expected = f"; expected Dice {mean} % (95 % interval {low} to {high}, over {counted(rows[-1]['n'], 'case')})"
    return expected + "".join(f"\n  WARNING: {flag['text']}" for flag in flags)
