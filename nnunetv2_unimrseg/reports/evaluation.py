"""The report of an evaluation: tables, plots, a picture of each case, and one HTML page with all of them.

FOLDER/report.html           one file that needs no other
FOLDER/table.md, table.tex   Dice and HD95 by subset
FOLDER/plots/*.png           heat map, box plots, cost of losing each modality
FOLDER/montages/CASE.png     modalities, reference and predictions
"""

from __future__ import annotations

from pathlib import Path

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.reports import plots
from nnunetv2_unimrseg.reports.case_images import read_case_images
from nnunetv2_unimrseg.reports.evaluation_page import Pictures, evaluation_page
from nnunetv2_unimrseg.reports.montage import (
    case_dice,
    modalities_by_cost,
    shown_subsets,
    write_montage,
)
from nnunetv2_unimrseg.reports.tables import subset_table, write_tables
from nnunetv2_unimrseg.reports.viewer import MOST_BYTES, viewer_case, viewer_cases
from nnunetv2_unimrseg.utils.files import whole_files

REPORT_NAME = "report.html"
PLOTS = (plots.heat_map, plots.boxes_by_number, plots.cost_of_losing)
TABLES = ("dice", "hd95_mm")


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the report of an evaluation; an older one in the folder stays whole until the new one is done.

    Args:
        evaluation: from `evaluate` or `read_evaluation`. Cases whose files are gone, and all cases of an evaluation
            without a folder, are in the tables but not in the pictures; the page says so.
        folder: where to write, made where it is not there.

    Returns:
        The page, `folder/report.html`.

    Raises:
        UserError: when the evaluation has no scores, or when the folder cannot be written to.
    """
    if evaluation.scores.empty:
        raise UserError("There is nothing to report: no case was scored. See the failures in summary.json.")
    with whole_files(folder) as unfinished:
        _write_all(evaluation, unfinished)
    return folder / REPORT_NAME


def _write_all(evaluation: Evaluation, folder: Path) -> None:
    write_tables({f"tab:{metric}": subset_table(evaluation, metric) for metric in TABLES}, folder)
    (folder / "plots").mkdir()
    drawn = {plot.__name__: folder / "plots" / f"{plot.__name__}.png" for plot in PLOTS}
    for plot in PLOTS:
        plot(evaluation, drawn[plot.__name__])
    pictures = _draw_cases(evaluation, folder / "montages")
    (folder / REPORT_NAME).write_text(evaluation_page(evaluation, drawn, pictures), encoding="utf-8")


def _draw_cases(evaluation: Evaluation, folder: Path) -> Pictures:
    """Write a picture of every case whose files can be read, and make the viewer's pictures of some."""
    from tqdm import tqdm

    if evaluation.folder is None:
        return Pictures(left_out=[(entry["case"], "nothing was saved") for entry in evaluation.settings["cases"]])
    folder.mkdir()
    pictures, chosen = Pictures(), viewer_cases(evaluation)
    subsets, dice, by_cost = shown_subsets(evaluation), case_dice(evaluation), modalities_by_cost(evaluation)
    scored = set(evaluation.scores["case"])
    for entry in tqdm([entry for entry in evaluation.settings["cases"] if entry["case"] in scored], desc="pictures"):
        name = entry["case"]
        try:
            case = read_case_images(evaluation, entry, subsets)
        except Exception as error:  # readers raise many types for a damaged file; the other cases are drawn
            pictures.left_out.append((name, str(error)))
            continue
        write_montage(evaluation, case, subsets, dice, by_cost, folder / f"{name}.png")
        if name in chosen:
            shown = viewer_case(evaluation, case, subsets, dice, by_cost, MOST_BYTES / len(chosen))
            pictures.viewer.append({**shown, "why": chosen[name]})
    pictures.viewer.sort(key=lambda case: list(chosen).index(case["case"]))
    return pictures
