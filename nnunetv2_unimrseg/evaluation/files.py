"""The files in the folder of an evaluation.

FOLDER/evaluation.json                      the model and how it predicts; written before the first score
FOLDER/predictions/SUBSET/CASE.nii.gz       the segmentations that were scored
FOLDER/scores/SUBSET/CASE.json              raw scores, from which an interrupted run goes on
FOLDER/subsets.csv                          the scores: a row for each case, subset and label
FOLDER/summary.json                         `Summary`: versions, model, conventions, cases and means
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from nnunetv2_unimrseg.errors import UserError, listed
from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.evaluation import FORMAT, Evaluation, Settings, Summary, folder_name
from nnunetv2_unimrseg.evaluation.metrics import RawScores
from nnunetv2_unimrseg.evaluation.summary import summary_tables
from nnunetv2_unimrseg.utils.files import file_problem, read_json, write_json, write_text

STARTED_NAME, SCORES_NAME, SUMMARY_NAME = "evaluation.json", "subsets.csv", "summary.json"


def start_or_continue(folder: Path, made_with: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder of an evaluation, or go on with one that was made with the same model in the same way.

    Args:
        folder: has passed `check_output_folder`.
        made_with: JSON types; everything that changes the predictions.
        overwrite: remove an evaluation that lies there, however it was made.

    Raises:
        UserError: when the folder holds another evaluation (lists what differs) or other files.
    """
    started = folder / STARTED_NAME
    if started.is_file():
        different = _differences(read_json(started), made_with)
        if different and not overwrite:
            raise UserError(
                f"{folder} holds an evaluation that was made otherwise:\n{listed(different)}\n"
                "Give another folder (-o), or replace it (--overwrite)."
            )
        if overwrite:
            _remove_evaluation(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no evaluation. Give another folder (-o).")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(started, made_with)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    differences = []
    for key in sorted({*before, *now}):
        name = f"{path}.{key}" if path else key
        one, other = before.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            differences += _differences(one, other, name)
        elif one != other:
            differences.append(f"{name}: {one} there, {other} now")
    return differences


def _remove_evaluation(folder: Path) -> None:
    """Remove the files of an evaluation; `evaluation.json` last, so that a second call can finish the removal."""
    remove_report(folder)
    for name in ("scores", "predictions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (SCORES_NAME, SUMMARY_NAME, STARTED_NAME):
        (folder / name).unlink(missing_ok=True)


def remove_report(folder: Path) -> None:
    """Remove tables, plots, pictures and the page, which show scores that are no longer there."""
    for name in ("plots", "montages"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("table.md", "table.tex", "report.html"):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Outcome:
    """The raw scores of a case with a subset, or why there are none.

    Attributes:
        scores: by label; empty where the case itself lacks a modality of the subset.
        problem: why the case could not be scored; "" where nothing went wrong.
    """

    scores: Mapping[str, RawScores]
    problem: str = ""


def write_outcome(folder: Path, case: EvaluationCase, subset: str, outcome: Outcome) -> None:
    """Write the outcome of a case with a subset, in one step."""
    path = _outcome_path(folder, case, subset)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {name: score.to_json() for name, score in outcome.scores.items()}
    write_json(path, {"files": case.fingerprint, "fold": case.fold, "problem": outcome.problem, "scores": scores})


def read_outcome(folder: Path, case: EvaluationCase, subset: str) -> Outcome | None:
    """Return the outcome of a case with a subset; None where it was not written, or the case's files changed since."""
    path = _outcome_path(folder, case, subset)
    if file_problem(path):
        return None
    content = read_json(path)
    if content["files"] != case.fingerprint or content["fold"] != case.fold:
        return None
    scores = {name: RawScores.from_json(entries) for name, entries in content["scores"].items()}
    return Outcome(scores, content["problem"])


def _outcome_path(folder: Path, case: EvaluationCase, subset: str) -> Path:
    return folder / "scores" / folder_name(subset) / f"{case.name}.json"


def write_evaluation(evaluation: Evaluation, folder: Path) -> Evaluation:
    """Write `subsets.csv` and, last, `summary.json`; return the evaluation with its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SCORES_NAME, evaluation.scores.to_csv(index=False))
    summary: Summary = {**evaluation.settings, "figures": summary_tables(evaluation)}
    write_json(folder / SUMMARY_NAME, summary)
    return dataclasses.replace(evaluation, folder=folder)


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read what `unimrseg evaluate` wrote.

    Raises:
        UserError: when the folder holds no finished evaluation, or one of another format.
    """
    folder = Path(folder)
    if not (folder / SUMMARY_NAME).is_file() or not (folder / SCORES_NAME).is_file():
        raise UserError(
            f"{folder} holds no finished evaluation: {SUMMARY_NAME} and {SCORES_NAME} are not both there. Make it "
            "with `unimrseg evaluate`; running the same command again goes on where it stopped."
        )
    summary = read_json(folder / SUMMARY_NAME)
    if summary.get("format") != FORMAT:
        raise UserError(
            f"{folder / SUMMARY_NAME} is no evaluation of format {FORMAT} (found {summary.get('format')!r}). Make it "
            "anew with this version of `unimrseg evaluate`."
        )
    text = {"case": str, "fold": str, "subset": str, "label": str}
    scores = pd.read_csv(folder / SCORES_NAME, dtype=text, keep_default_na=False, na_values=[""])
    summary.pop("figures", None)
    return Evaluation(cast(Settings, summary), scores, folder)
