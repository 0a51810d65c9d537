"""Making an evaluation of the outcomes that lie in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.conventions import FAILURE_DICE
from nnunetv2_unimrseg.evaluation.evaluation import (
    COLUMNS,
    EXTERNAL,
    FORMAT,
    VALIDATION,
    Evaluation,
    PredictionEntry,
    Settings,
)
from nnunetv2_unimrseg.evaluation.files import read_outcome
from nnunetv2_unimrseg.evaluation.model import Model, label_values
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.utils.versions import package_versions

TRAINED_WITH = (
    "training cases of fold 'all', predicted by the very model that was trained with them: too good to be true"
)
SOURCES = {
    VALIDATION: "validation cases of the folds, each predicted by the fold that was not trained with it",
    EXTERNAL: "cases given besides the training data",
}


def collect(
    folder: Path,
    model: Model,
    cases: Sequence[EvaluationCase],
    subsets: Mapping[str, Subset],
    *,
    kind: str,
    empty: str,
    prediction: PredictionEntry,
) -> Evaluation:
    """Return the evaluation of all cases and subsets that were predicted and scored.

    Args:
        folder: of the evaluation.
        model: that predicted.
        cases: to be evaluated.
        subsets: by name, to be evaluated.
        kind: `VALIDATION` or `EXTERNAL`.
        empty: the convention for empty labels.
        prediction: how the model predicted.
    """
    pairs = [(case, name) for case in cases for name in subsets]
    outcomes = {pair: outcome for pair in pairs if (outcome := read_outcome(folder, *pair)) is not None}
    rows = [
        {
            "case": case.name,
            "fold": case.fold,
            "subset": name,
            "num_modalities": sum(subsets[name]),
            "label": label,
            **score.row(empty),
        }
        for (case, name), outcome in outcomes.items()
        for label, score in outcome.scores.items()
    ]
    labels, modalities, folds = label_values(model.dataset_json, model.plans), model.modalities, model.entry["folds"]
    settings: Settings = {
        "format": FORMAT,
        "name": f"{model.entry['trainer']}, fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}",
        "versions": package_versions("nnunetv2", "torch", "monai"),
        "model": model.entry,
        "prediction": prediction,
        "conventions": {"empty": empty, "failure_dice": FAILURE_DICE},
        "kind": kind,
        "source": TRAINED_WITH if kind == VALIDATION and "all" in folds else SOURCES[kind],
        "modalities": list(modalities),
        "labels": list(labels),
        "label_values": {name: value if isinstance(value, int) else list(value) for name, value in labels.items()},
        "subsets": [
            {"name": name, "available": [one for one, there in zip(modalities, subset, strict=True) if there]}
            for name, subset in subsets.items()
        ],
        "cases": [
            {"case": case.name, "fold": case.fold, "images": case.images(modalities), "label": case.label}
            for case in cases
        ],
        "reader": model.plans["image_reader_writer"],
        "file_ending": model.dataset_json["file_ending"],
        "failures": [
            {"case": case.name, "subset": name, "reason": outcome.problem}
            for (case, name), outcome in outcomes.items()
            if outcome.problem
        ],
    }
    return Evaluation(settings, pd.DataFrame(rows, columns=list(COLUMNS)), folder, len(pairs) - len(outcomes))
