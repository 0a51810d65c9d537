"""The page of a comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from nnunetv2_unimrseg.comparison.differences import OVER_ALL, OVER_INCOMPLETE, case_scores
from nnunetv2_unimrseg.comparison.comparison import Comparison
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
"""Of the table with every label and metric; where there are more the page refers to differences.csv."""


def report_page(comparison: Comparison, *, dice_plot: Path, differences_plot: Path) -> str:
    """Return the self-contained page.

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
        heads={name: _breakable(name) for name in comparison.names},
        modalities=list(matched.modalities),
        labels=comparison.labels,
        headline=comparison.headline,
        num_cases=len(matched.cases),
        num_subsets=len(matched.subsets),
        notices=comparison.notices,
        short=[_in_short(comparison, model) for model in comparison.names[1:]],
        lines=_lines(comparison, comparison.headline),
        everything=_everything(comparison),
        num_differences=len(comparison.differences),
        metric_names=METRIC_NAMES,
        cases=_cases(comparison),
        cases_average=average_name(comparison, _main_average(comparison)),
        models=_models(comparison),
        empty=DESCRIPTIONS[comparison.evaluations[0].settings["conventions"]["empty"]],
        method=comparison.method,
        num_panels=len(panel_labels(comparison)),
        dice_plot=dice_plot,
        differences_plot=differences_plot,
    )


def _breakable(name: str) -> Markup:
    """Let a name such as UniMRSegStage3Trainer break before its capitals, so that columns can be narrow."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z0-9_])(?=[A-Z])", name))


def _main_average(comparison: Comparison) -> str:
    averages = comparison.rows(comparison.names[1], "dice", comparison.headline).index
    return OVER_INCOMPLETE if OVER_INCOMPLETE in averages else OVER_ALL


def _in_short(comparison: Comparison, model: str) -> dict[str, Any]:
    """Return the main average of one model, and in how many subsets it is better and worse than the baseline."""
    rows = comparison.rows(model, "dice", comparison.headline)
    single = rows.loc[list(comparison.matched.subsets)]
    marked = single["p_holm"].map(lambda p: is_marked(p, comparison))
    average = _main_average(comparison)
    return {
        "model": model,
        "average": average_name(comparison, average),
        **_figures(rows.loc[average], comparison, PERCENT),
        "better": int((single["difference"] > 0).sum()),
        "worse": int((single["difference"] < 0).sum()),
        "clearly_better": int((marked & (single["difference"] > 0)).sum()),
        "clearly_worse": int((marked & (single["difference"] < 0)).sum()),
    }


def _figures(row: pd.Series, comparison: Comparison, factor: float) -> dict[str, Any]:
    """Return one difference as the page shows it: in percent or mm, None where undefined."""
    figures = {name: None if pd.isna(value) else value for name, value in row.items()}
    for name in ("mean_a", "mean_b", "difference", "ci_low", "ci_high"):
        figures[name] = None if figures[name] is None else factor * figures[name]
    return {**figures, "marked": is_marked(row["p_holm"], comparison)}


def _subset(comparison: Comparison, name: str) -> dict[str, Any]:
    """Return name and modalities of a line: of a subset, or of an average, which has none."""
    if name not in comparison.matched.subsets:
        return {"name": average_name(comparison, name), "available": None, "order": None}
    chosen = zip(comparison.matched.modalities, comparison.matched.subsets[name], strict=True)
    order = list(comparison.matched.subsets).index(name)
    return {"name": name, "available": [modality for modality, there in chosen if there], "order": order}


def _lines(comparison: Comparison, label: str) -> list[dict[str, Any]]:
    """Return the lines of the Dice table: subset, baseline's figure, and each other model's difference."""
    tables = [comparison.rows(model, "dice", label) for model in comparison.names[1:]]
    return [
        {
            **_subset(comparison, name),
            "models": [_figures(table.loc[name], comparison, PERCENT) for table in tables],
        }
        for name in tables[0].index
    ]


def _everything(comparison: Comparison) -> list[dict[str, Any]]:
    if len(comparison.differences) > MOST_ROWS:
        return []
    return [
        {
            **_subset(comparison, row["subset"]),
            **_figures(row, comparison, PERCENT if row["metric"] == "dice" else 1.0),
        }
        for _, row in comparison.differences.iterrows()
    ]


def _cases(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every case's Dice (%) of the headline, averaged over subsets, by model."""
    scores = (PERCENT * case_scores(comparison.matched, "dice")).reset_index("case")
    chosen = scores.index == (comparison.headline, _main_average(comparison))
    return [{"case": case, "dice": dice} for case, *dice in scores[chosen].itertuples(index=False)]


def _models(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "folder": evaluation.folder and str(evaluation.folder.resolve()),
            "model": evaluation.settings["model"],
            "prediction": evaluation.settings["prediction"],
        }
        for name, evaluation in zip(comparison.names, comparison.evaluations, strict=True)
    ]
