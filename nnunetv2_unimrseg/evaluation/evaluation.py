"""An evaluation: the scores of one model on some cases, by subset of the modalities, and how they were made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from nnunetv2_unimrseg.modalities import Modalities, Subset

FORMAT = 1
VALIDATION, EXTERNAL = "validation", "external"
"""The kinds of an evaluation: of the validation cases of folds, or of cases given besides the training data."""

METRICS = ("dice", "hd95_mm", "asd_mm", "volume_difference_ml")
COLUMNS = ("case", "fold", "subset", "num_modalities", "label", *METRICS, "reference_ml", "prediction_ml")
"""Columns of the scores: Dice from 0 to 1, distances in mm, volumes in ml; NaN where undefined (see `conventions`)."""

LONGEST_FOLDER_NAME = 120
"""Bytes; file systems allow 255."""


class SubsetEntry(TypedDict):
    """A subset: its name ("T1+FLAIR") and its modalities."""

    name: str
    available: list[str]


class CaseEntry(TypedDict):
    """A case: its name, the folds that predicted it, its images by modality and its reference."""

    case: str
    fold: str
    images: dict[str, str]
    label: str


class Failure(TypedDict):
    """A case and subset that could not be predicted and scored, and why."""

    case: str
    subset: str
    reason: str


class ModelEntry(TypedDict):
    """The model: its names, its folds, the SHA-256 of each fold's weights, and what it makes of missing modalities."""

    dataset: str
    trainer: str
    plans: str
    configuration: str
    folds: list[str]
    checkpoint: str
    weights_sha256: dict[str, str]
    missing_modalities: str


class PredictionEntry(TypedDict, total=False):
    """How the model predicted."""

    mirroring: bool
    step_size: float
    device: str


class ConventionsEntry(TypedDict):
    """The convention for empty labels, and the Dice below which a case has failed."""

    empty: str
    failure_dice: float


class Settings(TypedDict):
    """Everything in `summary.json` but the means of the scores."""

    format: int
    name: str
    versions: dict[str, str]
    model: ModelEntry
    prediction: PredictionEntry
    conventions: ConventionsEntry
    kind: str
    source: str
    modalities: list[str]
    labels: list[str]
    label_values: dict[str, int | list[int]]
    subsets: list[SubsetEntry]
    cases: list[CaseEntry]
    reader: str
    file_ending: str
    failures: list[Failure]


class Summary(Settings):
    """`summary.json`; `figures` holds the tables that `summary.summary_tables` returns."""

    figures: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one model on some cases, by subset of the modalities.

    Attributes:
        settings: how they were made; JSON types only.
        scores: a row for each case, subset and label, columns `COLUMNS`.
        folder: the folder that it was written to; None while it is only in memory.
        unfinished: the number of pairs of case and subset that other parts of it have yet to do.
    """

    settings: Settings
    scores: pd.DataFrame
    folder: Path | None = None
    unfinished: int = 0

    @property
    def failures(self) -> list[Failure]:
        """What could not be predicted and scored."""
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
        """Return the file of the segmentation of a case with a subset."""
        if self.folder is None:
            raise ValueError("This evaluation has no folder.")
        return prediction_path(self.folder, case, subset, self.settings["file_ending"])


def prediction_path(folder: Path, case: str, subset: str, file_ending: str) -> Path:
    """Return the file, in an evaluation's folder, of the segmentation of a case with a subset."""
    return folder / "predictions" / folder_name(subset) / f"{case}{file_ending}"


def folder_name(subset: str) -> str:
    """Return a folder's name for a subset; of a long name the end is replaced by a hash of the whole."""
    name = "".join(letter if letter.isalnum() or letter in "+-._" else f"%{ord(letter):x}" for letter in subset)
    if len(name.encode()) <= LONGEST_FOLDER_NAME:
        return name
    kept = name.encode()[:LONGEST_FOLDER_NAME].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(subset.encode()).hexdigest()[:12]}"
