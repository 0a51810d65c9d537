"""What is said of a case that has some of the modalities: the Dice to expect, and flags in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.evaluation.expected_dice import EvaluatedModel, expected_of_subset, weaknesses
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL, records

WEAK, FEW_CASES, NOT_EVALUATED = "weak", "few_cases", "not_evaluated"
"""The kinds of flags."""

MOST_NAMED = 5
"""So many labels are named in a flag."""

Cases = Mapping[str, Mapping[str, Sequence[str]]]
"""What cases have, by name: `{"available": [...], "missing": [...]}`."""


def expected_of_case(
    model: EvaluatedModel, available: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Say what to expect of a case with the modalities named.

    Returns:
        The rows of `expected_of_subset`, the one that stands for all labels last; and flags, each with `kind` and
        `text`. Both are empty where the model was not evaluated.
    """
    if model.evaluation is None:
        return [], []
    table = expected_of_subset(model.evaluation, available).drop(columns="subset")
    if table.empty:
        text = "what to expect is not known: this combination of modalities was not evaluated"
        return [], [{"kind": NOT_EVALUATED, "text": text}]
    flags = [{"kind": WEAK, "text": text} for text in _reasons(table)]
    n = int(table["n"].iloc[-1])
    if table["few_cases"].iloc[-1]:
        flags.append({"kind": FEW_CASES, "text": f"evaluated on {n} case{'s' if n != 1 else ''} only"})
    return records(table), flags


def expected_of_subsets(
    model: EvaluatedModel, cases: Cases
) -> dict[tuple[str, ...], tuple[list[dict[str, Any]], list[dict[str, str]]]]:
    """Return `expected_of_case` by the modalities that cases have; each subset is worked out once."""
    distinct = dict.fromkeys(tuple(case["available"]) for case in cases.values())
    return {available: expected_of_case(model, available) for available in distinct}


def _reasons(table: pd.DataFrame) -> list[str]:
    """Return each reason why a subset is weak, with the labels for which it is."""
    of_reason: dict[str, dict[str, float]] = {}
    for row in table.to_dict("records"):
        for reason, figure in weaknesses(row).items():
            of_reason.setdefault(reason, {})[row["label"]] = figure
    return [f"{reason}: {_listed(labels, len(table) > 1)}" for reason, labels in of_reason.items()]


def _listed(figures: dict[str, float], several: bool) -> str:
    """Name labels with their figures; the mean over several labels only where it stands alone."""
    labels = {name: figure for name, figure in figures.items() if not several or name != MEAN_LABEL}
    words = [f"{name} {figure:.1f}" for name, figure in (labels or {"mean of the labels": figures[MEAN_LABEL]}).items()]
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more


def remarks(model: EvaluatedModel, cases: Cases) -> dict[str, str]:
    """Return what to say on the console after each case's modalities; "" where nothing is known."""
    expected = expected_of_subsets(model, cases)
    return {name: _remark(*expected[tuple(case["available"])]) for name, case in cases.items()}


def _remark(figures: Sequence[Mapping[str, Any]], flags: Sequence[Mapping[str, str]]) -> str:
    said = ""
    if figures and figures[-1]["dice"] is not None:
        mean, low, high = (f"{100 * figures[-1][name]:.1f}" for name in ("dice", "dice_low", "dice_high"))
        said = f"; expected Dice {mean} % ({low} to {high}, n = {figures[-1]['n']})"
    return said + "".join(f"\n  WARNING: {flag['text']}" for flag in flags)
