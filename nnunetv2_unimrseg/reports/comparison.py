"""The files that `unimrseg compare` writes.

FOLDER/differences.csv    the paired differences, tidy
FOLDER/subsets.csv        the scores of all models, tidy
FOLDER/summary.json       versions, models, conventions, method and the differences
FOLDER/table.md, .tex     Dice by subset, a table a label
FOLDER/plots/*.png        Dice by subset; differences with their intervals
FOLDER/report.html        all of it on one page
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.comparison.comparison import Comparison
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.files import SCORES_NAME, SUMMARY_NAME
from nnunetv2_unimrseg.evaluation.summary import records
from nnunetv2_unimrseg.reports import comparison_plots as plots
from nnunetv2_unimrseg.reports.comparison_page import comparison_page, describe_models
from nnunetv2_unimrseg.reports.comparison_tables import comparison_table
from nnunetv2_unimrseg.reports.tables import write_tables
from nnunetv2_unimrseg.utils.files import read_json, whole_files, write_json
from nnunetv2_unimrseg.utils.output_folder import check_output_folder
from nnunetv2_unimrseg.utils.versions import package_versions

FORMAT = 1
FORMAT_KEY = "comparison_format"
DIFFERENCES_NAME, REPORT_NAME = "differences.csv", "report.html"
DICE_PLOT, DIFFERENCES_PLOT = "plots/dice_by_subset.png", "plots/differences.png"


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Check that a comparison may be written to `folder`: a new or empty one, or one that holds a comparison.

    Raises:
        UserError: as `check_output_folder`; when the folder holds an evaluation; without `overwrite`, when it holds
            anything else.
    """
    check_output_folder(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    summary = read_json(folder / SUMMARY_NAME) if (folder / SUMMARY_NAME).is_file() else {}
    if FORMAT_KEY in summary:
        return
    if "format" in summary or (folder / "scores").is_dir():
        raise UserError(
            f"{folder} holds an evaluation, which a comparison would damage. Choose another folder with -o."
        )
    if not overwrite:
        raise UserError(
            f"{folder} is not empty and holds no comparison. Choose another folder with -o, or write into it with "
            "--overwrite."
        )


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write all files; they move into `folder` when all are written and whole.

    Raises:
        UserError: when the folder cannot be written to; then it is as it was.
    """
    with whole_files(folder) as unfinished:
        _write_all(comparison, unfinished)


def _write_all(comparison: Comparison, folder: Path) -> None:
    (folder / "plots").mkdir()
    comparison.differences.to_csv(folder / DIFFERENCES_NAME, index=False)
    comparison.scores.to_csv(folder / SCORES_NAME, index=False)
    labels = [comparison.headline, *(label for label in comparison.labels if label != comparison.headline)]
    tables = [comparison_table(comparison, label) for label in labels]
    write_tables({f"tab:comparison-{number}": table for number, table in enumerate(tables, start=1)}, folder)
    plots.dice_by_subset(comparison, folder / DICE_PLOT)
    plots.differences(comparison, folder / DIFFERENCES_PLOT)
    page = comparison_page(comparison, dice_plot=folder / DICE_PLOT, differences_plot=folder / DIFFERENCES_PLOT)
    (folder / REPORT_NAME).write_text(page, encoding="utf-8")
    write_json(folder / SUMMARY_NAME, summarise(comparison))


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Return the content of `summary.json`; JSON types, None for undefined values."""
    matched = comparison.matched
    return {
        FORMAT_KEY: FORMAT,
        "versions": package_versions("numpy", "pandas", "scipy"),
        "models": describe_models(comparison),
        "conventions": comparison.evaluations[0].settings["conventions"],
        "method": comparison.method,
        "modalities": list(matched.modalities),
        "labels": list(matched.labels),
        "subsets": [
            {"name": name, "available": matched.modalities.available(subset)}
            for name, subset in matched.subsets.items()
        ],
        "cases": matched.cases,
        "notices": list(comparison.notices),
        "figures": {"differences": records(comparison.differences)},
    }
