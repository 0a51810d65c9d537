"""The folder of an evaluation while it is made: what it was made with, and the raw scores of every case and subset."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.metrics import RawScores
from nnunetv2_unimrseg.evaluation.evaluation import (
    COLUMNS,
    SCORES_NAME,
    SUMMARY_NAME,
    Evaluation,
    score_path,
)
from nnunetv2_unimrseg.evaluation.summary import figures_of
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.nnunet.paths import read_json, write_json, write_text
from nnunetv2_unimrseg.utils.files import file_problem

STARTED_NAME = "evaluation.json"
"""Says with which model and how the scores in the folder were made; written before the first of them."""


def open_folder(folder: Path, made_with: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder of an evaluation, or go on with one that was made with the same model in the same way.

    Args:
        folder: where it lies.
        made_with: JSON types, whatever changes the predictions.
        overwrite: remove an evaluation that lies there, whatever it was made with.

    Raises:
        UserError: when the folder holds another evaluation (lists what differs) or other files.
    """
    started = folder / STARTED_NAME
    if started.is_file():
        different = _differences(read_json(started), made_with)
        if different and not overwrite:
            raise UserError(
                f"{folder} holds an evaluation that was made otherwise:\n  - "
                + "\n  - ".join(different)
                + "\nGive another folder (-o), or replace it (--overwrite)."
            )
        if overwrite:
            _empty(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no evaluation, or is no folder. Give another folder (-o).")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {folder}: {error.strerror}. Give another one (-o).") from None
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


def _empty(folder: Path) -> None:
    """Remove what an evaluation writes, the record of how it was made last."""
    remove_report(folder)
    for name in ("scores", "predictions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (SCORES_NAME, SUMMARY_NAME, STARTED_NAME):
        (folder / name).unlink(missing_ok=True)


def remove_report(folder: Path) -> None:
    """Remove tables, plots, pictures and page, which tell of scores that are there no more."""
    for name in ("plots", "montages"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("table.md", "table.tex", "report.html"):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """What came of a case with a subset.

    Attributes:
        scores: by label; none where the case itself lacks a modality of the subset.
        problem: why it could not be scored; "" where nothing went wrong.
    """

    scores: Mapping[str, RawScores]
    problem: str = ""


def write_record(folder: Path, case: EvaluationCase, subset: str, record: Record) -> None:
    """Write what came of a case with a subset, in one step."""
    path = score_path(folder, case.name, subset)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {name: score.to_json() for name, score in record.scores.items()}
    content = {"files": case.fingerprint, "fold": case.fold, "problem": record.problem, "scores": scores}
    write_json(path, content)


def read_record(folder: Path, case: EvaluationCase, subset: str) -> Record | None:
    """Return what came of a case with a subset; None where nothing whole has yet, or its files have changed since."""
    path = score_path(folder, case.name, subset)
    if file_problem(path):
        return None
    content = read_json(path)
    if content["files"] != case.fingerprint or content["fold"] != case.fold:
        return None
    scores = {name: RawScores.from_json(entries) for name, entries in content["scores"].items()}
    return Record(scores, content["problem"])


def tidy(
    records: Mapping[tuple[EvaluationCase, str], Record], subsets: Mapping[str, Subset], empty: str
) -> pd.DataFrame:
    """Return the tidy table (columns `COLUMNS`).

    Args:
        records: by case and subset.
        subsets: by name.
        empty: the convention for empty labels.
    """
    rows = [
        {
            "case": case.name,
            "fold": case.fold,
            "subset": subset,
            "num_modalities": sum(subsets[subset]),
            "label": label,
            **score.row(empty),
        }
        for (case, subset), record in records.items()
        for label, score in record.scores.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_evaluation(evaluation: Evaluation, folder: Path) -> Evaluation:
    """Write `subsets.csv` and, last, `summary.json` with the figures; return the evaluation as it lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SCORES_NAME, evaluation.scores.to_csv(index=False))
    write_json(folder / SUMMARY_NAME, {**evaluation.settings, "figures": figures_of(evaluation)})
    return dataclasses.replace(evaluation, folder=folder)
