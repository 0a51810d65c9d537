"""The folder that reconstructions are written to: its scores, and the model and settings behind them.

FOLDER/CASE_XXXX<ending>            each missing modality
FOLDER/CASE_reconstruction.png      the picture of a case, written after its other files
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
from nnunetv2_unimrseg.method.reconstruction_metrics import METRICS, UNIT
from nnunetv2_unimrseg.utils.file_lock import locked
from nnunetv2_unimrseg.utils.files import read_json, write_json, write_text
from nnunetv2_unimrseg.utils.output_folder import ANOTHER, check_output_folder, make_output_folder
from nnunetv2_unimrseg.utils.versions import package_versions

SCORES_NAME, SUMMARY_NAME = "scores.csv", "summary.json"
PICTURE_SUFFIX = "_reconstruction.png"
KEYS = ("case", "available", "modality")


def check_reconstruction_folder(folder: Path, inputs: Iterable[str | os.PathLike[str]], file_ending: str) -> None:
    """Check, without making it, that a folder can take reconstructions.

    Args:
        folder: where it lies or is to be made.
        inputs: every input file, and their folder where one was given.
        file_ending: of images, as in dataset.json.

    Raises:
        UserError: as `check_output_folder`; and when it holds scans, among which synthetic images would be taken for
            scans the next time.
    """
    check_output_folder(folder, inputs)
    if not folder.is_dir() or (folder / SUMMARY_NAME).is_file():
        return
    real = sorted(entry.name for entry in folder.iterdir() if split_name(entry, file_ending))
    if real:
        raise UserError(
            f"The output folder {folder} holds images that are no reconstructions, such as {real[0]}. The next time, "
            f"synthetic images written there would be taken for scans. {ANOTHER}"
        )


def start_or_continue(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder, or go on in one whose files were made in the same way.

    Args:
        folder: has passed `check_reconstruction_folder`.
        settings: JSON types; everything that changes the reconstructions.
        overwrite: remove the scores, and the pictures that mark a case as done, of reconstructions that were made
            otherwise.

    Raises:
        UserError: when the folder cannot be made, and when its files were made otherwise and are not to be replaced.
    """
    make_output_folder(folder)
    path = folder / SUMMARY_NAME
    with locked(path):
        _remove_outdated(folder, path, settings, overwrite)


def _remove_outdated(folder: Path, path: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
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
    """Return the content of `scores.csv`, no rows where there is no such file; columns `KEYS` and `METRICS`."""
    path = folder / SCORES_NAME
    scores: pd.DataFrame = pd.DataFrame(columns=[*KEYS, *METRICS])
    if path.is_file():
        text, undefined = dict.fromkeys(KEYS, str), dict.fromkeys(METRICS, "")
        scores = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=undefined)
    return scores


def add_scores(folder: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Add scores to `scores.csv` and `summary.json`, in place of those that the same cases had."""
    with locked(folder / SUMMARY_NAME):
        new = pd.DataFrame(rows, columns=[*KEYS, *METRICS])
        before = read_scores(folder)
        before = before[~before["case"].isin(new["case"])]
        scores = pd.concat([before, new], ignore_index=True) if len(before) else new
        scores = scores.sort_values("case", kind="stable", ignore_index=True)
        write_text(folder / SCORES_NAME, scores.to_csv(index=False))
        write_json(folder / SUMMARY_NAME, _summary(settings, scores))


def _summary(settings: Mapping[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
    means = scores.groupby(["available", "modality"], sort=False)[list(METRICS)].mean()
    mean: dict[str, dict[str, Any]] = {}
    for (available, modality), row in zip(means.index, means.to_dict("records"), strict=True):
        mean.setdefault(available, {})[modality] = _json_types(row)
    return {
        "settings": dict(settings),
        "versions": package_versions("nnunetv2", "torch"),
        "unit": UNIT,
        "patterns": "available modalities, joined by +; each missing modality is scored",
        "num_cases": int(scores["case"].nunique()),
        "missing_modalities_mean": _json_types(means.mean().to_dict()) if len(means) else None,
        "mean": mean,
    }


def _json_types(scores: Mapping[Any, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}
