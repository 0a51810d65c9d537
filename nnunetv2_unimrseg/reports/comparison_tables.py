"""The table of a comparison: Dice of each model by subset, and its difference to the baseline."""

from __future__ import annotations

import math

import pandas as pd

from nnunetv2_unimrseg.comparison.comparison import Comparison
from nnunetv2_unimrseg.comparison.differences import OVER_ALL, OVER_INCOMPLETE
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.reports.tables import (
    MEAN_OF_ALL,
    MEAN_OF_INCOMPLETE,
    NOTHING,
    Table,
    mean_over_cases,
    one_decimal,
)

PERCENT = 100.0


def comparison_table(comparison: Comparison, label: str) -> Table:
    """Make the Dice table of one label: the baseline's Dice, then each model's Dice, difference and p.

    Args:
        comparison: the comparison.
        label: one of `comparison.labels`.
    """
    baseline, *others = comparison.names
    tables = [comparison.rows(model, "dice", label) for model in others]
    confidence = f"{PERCENT * comparison.method['confidence']:g}"
    columns = [baseline]
    for model in others:
        columns += [model, f"difference [{confidence} % CI]", "p"]
    texts = {subset: _texts([table.loc[subset] for table in tables], comparison) for subset in tables[0].index}
    subsets = comparison.matched.subsets
    return Table(
        caption=_caption(comparison, label, confidence),
        modalities=list(comparison.matched.modalities),
        columns=columns,
        subsets=list(subsets.values()),
        values=[texts[subset] for subset in subsets],
        averages={average_name(comparison, name): texts[name] for name in texts if name not in subsets},
        columns_head="models",
    )


def average_name(comparison: Comparison, average: str) -> str:
    """Return the name that an average over subsets has in tables: with the number of subsets."""
    subsets = comparison.matched.subsets.values()
    incomplete = sum(not all(subset) for subset in subsets)
    return {OVER_ALL: MEAN_OF_ALL.format(len(subsets)), OVER_INCOMPLETE: MEAN_OF_INCOMPLETE.format(incomplete)}[average]


def points(value: float) -> str:
    """Return a difference of Dice in points (of 100) with its sign."""
    text = f"{PERCENT * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def is_marked(p: float, comparison: Comparison) -> bool:
    """Return whether a corrected p is below the significance level."""
    return bool(p < comparison.method["significance"])


def _texts(rows: list[pd.Series], comparison: Comparison) -> list[str]:
    """Return the texts of one line; `rows` holds the differences of the models to the baseline."""
    texts = [one_decimal(PERCENT * rows[0]["mean_a"])]
    for row in rows:
        p = row["p_holm"]
        probability = NOTHING if math.isnan(p) else f"{p:.2g}{'*' if is_marked(p, comparison) else ''}"
        texts += [one_decimal(PERCENT * row["mean_b"]), _difference(row), probability]
    return texts


def _difference(row: pd.Series) -> str:
    if math.isnan(row["difference"]):
        return NOTHING
    if math.isnan(row["ci_low"]):
        return points(row["difference"])
    return f"{points(row['difference'])} [{points(row['ci_low'])}, {points(row['ci_high'])}]"


def _caption(comparison: Comparison, label: str, confidence: str) -> str:
    cases = mean_over_cases(len(comparison.matched.cases))
    name = "mean over the labels" if label == MEAN_LABEL else label
    return (
        f"{name}: Dice (%), {cases}, and difference to {comparison.names[0]} with {confidence} % bootstrap interval; "
        f"p of Wilcoxon's signed-rank test after Holm's correction, * below {comparison.method['significance']:g}"
    )
