"""The folder that reconstructions are written to: scores, and with what they were made.

FOLDER/CASE_XXXX<ending>            each missing modality
FOLDER/CASE_reconstruction.png      the picture of a case, written when all else of it is
FOLDER/scores.csv                   one row a case x available modalities x missing modality whose truth is known
FOLDER/summary.json                 model, settings, and means of the scores
FOLDER/modalities.json              which modalities each case had
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.cases import one_at_a_time
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.folders import read_json, write_json
from nnunetv2_unimrseg.reconstruction.scores import FIGURES, UNIT
from nnunetv2_unimrseg.versions import versions_of

SCORES_NAME, SUMMARY_NAME = "scores.csv", "summary.json"
KEYS = ("case", "available", "modality")


def open_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder, or go on in one whose files were made in the same way.

    Args:
        folder: where it lies.
        settings: JSON types, whatever changes the reconstructions.
        overwrite: forget the scores of a folder that was made otherwise.

    Raises:
        UserError: when the folder's files were made otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SUMMARY_NAME
    with one_at_a_time(path):
        before = read_json(path).get("settings") if path.is_file() else None
        if before == settings:
            return
        if before is not None and not overwrite:
            changed = [key for key in settings if before.get(key) != settings[key]]
            raise UserError(
                f"{folder} holds reconstructions that were made otherwise ({', '.join(changed)} differ; see "
                f"{SUMMARY_NAME}). Give another folder (-o), or replace them (--overwrite)."
            )
        (folder / SCORES_NAME).unlink(missing_ok=True)
        write_json(path, _summary(settings, read_scores(folder)))


def read_scores(folder: Path) -> pd.DataFrame:
    """Return what `scores.csv` holds, without rows where there is none; columns `KEYS` and `FIGURES`."""
    path = folder / SCORES_NAME
    if not path.is_file():
        return pd.DataFrame(columns=[*KEYS, *FIGURES])
    text, undefined = dict.fromkeys(KEYS, str), dict.fromkeys(FIGURES, "")
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=undefined)


def add_scores(folder: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Add scores to `scores.csv` and `summary.json`, in place of those that the same cases had."""
    with one_at_a_time(folder / SUMMARY_NAME):
        new = pd.DataFrame(rows, columns=[*KEYS, *FIGURES])
        before = read_scores(folder)
        before = before[~before["case"].isin(new["case"])]
        scores = pd.concat([before, new], ignore_index=True) if len(before) else new
        scores = scores.sort_values("case", kind="stable", ignore_index=True)
        temporary = folder / f".{SCORES_NAME}.tmp"
        scores.to_csv(temporary, index=False)
        temporary.replace(folder / SCORES_NAME)
        write_json(folder / SUMMARY_NAME, _summary(settings, scores))


def _summary(settings: Mapping[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
    means = scores.groupby(["available", "modality"], sort=False)[list(FIGURES)].mean()
    mean: dict[str, dict[str, Any]] = {}
    for (available, modality), row in means.iterrows():
        mean.setdefault(available, {})[modality] = _json_types(row)
    return {
        "settings": dict(settings),
        "versions": versions_of("nnunetv2", "torch"),
        "unit": UNIT,
        "patterns": "available modalities, joined by +; each missing modality is scored",
        "num_cases": int(scores["case"].nunique()),
        "missing_modalities_mean": _json_types(means.mean()) if len(means) else None,
        "mean": mean,
    }


def _json_types(figures: pd.Series) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}
