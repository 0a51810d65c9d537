"""The page of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.comparison.comparison import Comparison
from nnunetv2_unimrseg.comparison.differences import OVER_ALL, OVER_INCOMPLETE, case_scores
from nnunetv2_unimrseg.evaluation.conventions import DESCRIPTIONS
from nnunetv2_unimrseg.reports.comparison_plots import panel_labels
from nnunetv2_unimrseg.reports.comparison_tables import PERCENT, average_name, is_marked
from nnunetv2_unimrseg.reports.html import render

METRIC_NAMES = {
    "dice": "Dice (%)",
    "hd95_mm": "95 % Hausdorff distance (mm)",
    "asd_mm": "average surface distance (mm)",
}

MOST_ROWS = 6000
"""Longest table with every label and metric; a page without it refers to differences.csv."""


def comparison_page(comparison: Comparison, *, dice_plot: Path, differences_plot: Path) -> str:
    """Return the page, which needs no other file.

    Args:
        comparison: the comparison.
        dice_plot, differences_plot: the PNG files that it shows.
    """
    matched = comparison.matched
    return render(
        "comparison.html.j2",
        names=comparison.names,
        baseline=comparison.names[0],
        others=comparison.names[1:],
        modalities=list(matched.modalities),
        labels=comparison.labels,
        headline=comparison.headline,
        num_cases=len(matched.cases),
        num_subsets=len(matched.subsets),
        notices=comparison.notices,
        short=[_outline(comparison, model) for model in comparison.names[1:]],
        lines=_dice_lines(comparison, comparison.headline),
        everything=_difference_lines(comparison),
        num_differences=len(comparison.differences),
        metric_names=METRIC_NAMES,
        cases=_case_lines(comparison),
        cases_average=average_name(comparison, _main_average(comparison)),
        models=describe_models(comparison),
        empty=DESCRIPTIONS[comparison.evaluations[0].settings["conventions"]["empty"]],
        method=comparison.method,
        num_panels=len(panel_labels(comparison)),
        dice_plot=dice_plot,
        differences_plot=differences_plot,
    )


def _main_average(comparison: Comparison) -> str:
    averages = comparison.rows(comparison.names[1], "dice", comparison.headline).index
    return OVER_INCOMPLETE if OVER_INCOMPLETE in averages else OVER_ALL


def _outline(comparison: Comparison, model: str) -> dict[str, Any]:
    """Return the main average of one model, and in how many subsets it is better and worse than the baseline."""
    rows = comparison.rows(model, "dice", comparison.headline)
    single = rows.loc[list(comparison.matched.subsets)]
    marked = single["p_holm"].map(lambda p: is_marked(p, comparison))
    average = _main_average(comparison)
    return {
        "model": model,
        "average": average_name(comparison, average),
        **_difference(rows.loc[average], comparison, PERCENT),
        "better": int((single["difference"] > 0).sum()),
        "worse": int((single["difference"] < 0).sum()),
        "clearly_better": int((marked & (single["difference"] > 0)).sum()),
        "clearly_worse": int((marked & (single["difference"] < 0)).sum()),
    }


def _difference(row: pd.Series, comparison: Comparison, factor: float) -> dict[str, Any]:
    """Return one difference as the page shows it: in percent or mm, None where undefined."""
    scaled = {name: factor * row[name] for name in ("mean_a", "mean_b", "difference", "ci_low", "ci_high")}
    values = {str(name): None if pd.isna(value) else value for name, value in {**row, **scaled}.items()}
    return {**values, "marked": is_marked(row["p_holm"], comparison)}


def _subset(comparison: Comparison, name: str) -> dict[str, Any]:
    """Return name and modalities of a line: of a subset, or of an average, which has none."""
    matched = comparison.matched
    if name not in matched.subsets:
        return {"name": average_name(comparison, name), "available": None, "order": None}
    order = list(matched.subsets).index(name)
    return {"name": name, "available": matched.modalities.available(matched.subsets[name]), "order": order}


def _dice_lines(comparison: Comparison, label: str) -> list[dict[str, Any]]:
    """Return the lines of the Dice table: subset, the baseline's Dice, and each other model's difference."""
    tables = [comparison.rows(model, "dice", label) for model in comparison.names[1:]]
    return [
        {
            **_subset(comparison, name),
            "models": [_difference(table.loc[name], comparison, PERCENT) for table in tables],
        }
        for name in tables[0].index
    ]


def _difference_lines(comparison: Comparison) -> list[dict[str, Any]]:
    if len(comparison.differences) > MOST_ROWS:
        return []
    return [
        {
            **_subset(comparison, row["subset"]),
            **_difference(row, comparison, PERCENT if row["metric"] == "dice" else 1.0),
        }
        for _, row in comparison.differences.iterrows()
    ]


def _case_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every case's Dice (%) of the headline, averaged over subsets, by model."""
    scores = (PERCENT * case_scores(comparison.matched, "dice")).reset_index("case")
    chosen = scores.index == (comparison.headline, _main_average(comparison))
    return [{"case": case, "dice": dice} for case, *dice in scores[chosen].itertuples(index=False)]


def describe_models(comparison: Comparison) -> list[dict[str, Any]]:
    """Return, for each model, its name, the evaluation's folder, and the settings that it was evaluated with."""
    return [
        {
            "name": name,
            "folder": evaluation.folder and str(evaluation.folder.resolve()),
            **{key: evaluation.settings[key] for key in ("model", "prediction", "versions")},
        }
        for name, evaluation in zip(comparison.names, comparison.evaluations, strict=True)
    ]
