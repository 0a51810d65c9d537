"""An evaluation, in memory and in its folder.

FOLDER/subsets.csv                          one row a case x subset x label
FOLDER/summary.json                         versions, model, conventions, cases and figures
FOLDER/predictions/SUBSET/CASE.nii.gz       what was scored
FOLDER/scores/SUBSET/CASE.json              raw scores, from which an interrupted run goes on
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.nnunet.paths import read_json

FORMAT = 1
LONGEST_FOLDER_NAME = 120
"""Bytes; file systems allow 255."""

SCORES_NAME, SUMMARY_NAME = "subsets.csv", "summary.json"
METRICS = ("dice", "hd95_mm", "asd_mm", "volume_difference_ml")
COLUMNS = ("case", "fold", "subset", "num_modalities", "label", *METRICS, "reference_ml", "prediction_ml")
"""Of the tidy table: Dice from 0 to 1, distances in mm, volumes in ml; NaN where undefined (see `conventions`)."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one model on some cases, by subset of the modalities.

    Attributes:
        settings: what `summary.json` records besides the figures; JSON types only. Keys: `name`, `versions`, `model`,
            `prediction`, `conventions`, `modalities`, `labels`, `subsets` (each with `name` and `available`), `cases`
            (each with `case`, `fold`, `images` by modality, `label`), `reader`, `file_ending`, `failures`.
        scores: the tidy table, columns `COLUMNS`.
        folder: where it lies; None while it is only in memory.
        unfinished: how many cases x subsets other parts of it have yet to do.
    """

    settings: dict[str, Any]
    scores: pd.DataFrame
    folder: Path | None = None
    unfinished: int = 0

    @property
    def failures(self) -> list[dict[str, str]]:
        """What could not be predicted and scored: `case`, `subset`, `reason`."""
        return list(self.settings["failures"])

    @property
    def modalities(self) -> Modalities:
        """The dataset's modalities, in channel order."""
        return Modalities(self.settings["modalities"])

    @property
    def labels(self) -> list[str]:
        """Names of the labels or regions scored, in the dataset's order."""
        return list(self.settings["labels"])

    @property
    def subsets(self) -> dict[str, Subset]:
        """The subsets scored by name ("T1+FLAIR"), fewest modalities first."""
        return {
            entry["name"]: tuple(name in entry["available"] for name in self.modalities)
            for entry in self.settings["subsets"]
        }

    @property
    def complete(self) -> str | None:
        """Name of the complete subset; None where it was not evaluated."""
        return next((name for name, subset in self.subsets.items() if all(subset)), None)

    def prediction_path(self, case: str, subset: str) -> Path:
        """Return where the segmentation of a case with a subset lies."""
        if self.folder is None:
            raise ValueError("This evaluation has no folder.")
        return prediction_path(self.folder, case, subset, self.settings["file_ending"])


def prediction_path(folder: Path, case: str, subset: str, file_ending: str) -> Path:
    """Return the file of the segmentation of a case with the subset of this name."""
    return folder / "predictions" / folder_name(subset) / f"{case}{file_ending}"


def score_path(folder: Path, case: str, subset: str) -> Path:
    """Return the file of the raw scores of a case with the subset of this name."""
    return folder / "scores" / folder_name(subset) / f"{case}.json"


def folder_name(subset: str) -> str:
    """Return a subset's name for use as a folder's; a long one is cut, and a hash of the whole appended."""
    name = "".join(letter if letter.isalnum() or letter in "+-._" else f"%{ord(letter):x}" for letter in subset)
    if len(name.encode()) <= LONGEST_FOLDER_NAME:
        return name
    kept = name.encode()[:LONGEST_FOLDER_NAME].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(subset.encode()).hexdigest()[:12]}"


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
    return Evaluation({key: value for key, value in summary.items() if key != "figures"}, scores, folder)
