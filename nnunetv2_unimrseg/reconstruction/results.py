"""The folder that reconstructions are written to: scores, and with what they were made.

FOLDER/CASE_XXXX<ending>            each missing modality
FOLDER/CASE_reconstruction.png      the picture of a case, written when all else of it is
FOLDER/scores.csv                   one row a case x available modalities x missing modality whose truth is known
FOLDER/summary.json                 model, settings, and means of the scores
FOLDER/modalities.json              which modalities each case had
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.data.scan_folder import split_name
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.reconstruction_metrics import FIGURES, UNIT
from nnunetv2_unimrseg.nnunet.paths import read_json, write_json, write_text
from nnunetv2_unimrseg.utils.file_lock import locked
from nnunetv2_unimrseg.utils.output_folder import ANOTHER, check_output_folder
from nnunetv2_unimrseg.utils.versions import versions_of

SCORES_NAME, SUMMARY_NAME = "scores.csv", "summary.json"
PICTURE_SUFFIX = "_reconstruction.png"
KEYS = ("case", "available", "modality")


def check_folder(folder: Path, inputs: Iterable[str | os.PathLike], file_ending: str) -> None:
    """Check, without making it, that a folder can take reconstructions.

    Args:
        folder: where it lies or is to be made.
        inputs: every input file, and their folder where one was given.
        file_ending: of images, as in dataset.json.

    Raises:
        UserError: see `check_output_folder`; and when it holds images that are not reconstructions: the next time,
            synthetic images would pass for scans.
    """
    check_output_folder(folder, inputs)
    if not folder.is_dir() or (folder / SUMMARY_NAME).is_file():
        return
    real = sorted(entry.name for entry in folder.iterdir() if split_name(entry, file_ending))
    if real:
        raise UserError(
            f"The output folder {folder} holds images that are no reconstructions, such as {real[0]}; the next time, "
            f"synthetic images would pass for scans. {ANOTHER}"
        )


def open_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder, or go on in one whose files were made in the same way.

    Args:
        folder: where it lies.
        settings: JSON types, whatever changes the reconstructions.
        overwrite: remove the scores, and the pictures that mark a case as done, of a folder that was made otherwise.

    Raises:
        UserError: when the folder's files were made otherwise, and when it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / SUMMARY_NAME):
            _enter(folder, settings, overwrite)
    except OSError as error:
        raise UserError(
            f"Cannot write to the output folder {folder}: {error.strerror}. Give another one (-o)."
        ) from error


def _enter(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    path = folder / SUMMARY_NAME
    before = read_json(path).get("settings") if path.is_file() else None
    if before == settings:
        return
    outdated = [path, folder / SCORES_NAME, *folder.glob(f"*{PICTURE_SUFFIX}")]
    outdated = [file for file in outdated if file.is_file()]
    if outdated and not overwrite:
        what = f"{outdated[0].name} of something else"
        if before:
            changed = [key for key in settings if before.get(key) != settings[key]]
            what = f"reconstructions that were made otherwise ({', '.join(changed)} differ; see {SUMMARY_NAME})"
        raise UserError(f"{folder} holds {what}. Give another folder (-o), or replace it (--overwrite).")
    for file in outdated:
        if file != path:
            file.unlink()
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
    with locked(folder / SUMMARY_NAME):
        new = pd.DataFrame(rows, columns=[*KEYS, *FIGURES])
        before = read_scores(folder)
        before = before[~before["case"].isin(new["case"])]
        scores = pd.concat([before, new], ignore_index=True) if len(before) else new
        scores = scores.sort_values("case", kind="stable", ignore_index=True)
        write_text(folder / SCORES_NAME, scores.to_csv(index=False))
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
