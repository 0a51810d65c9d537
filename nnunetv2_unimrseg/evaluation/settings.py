"""What `summary.json` records of how an evaluation was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.conventions import FAILURE_DICE
from nnunetv2_unimrseg.evaluation.evaluation import (
    EXTERNAL,
    FORMAT,
    VALIDATION,
    Failure,
    PredictionEntry,
    Settings,
)
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


def describe_evaluation(
    model: Model,
    *,
    prediction: PredictionEntry,
    kind: str,
    empty: str,
    cases: Sequence[EvaluationCase],
    subsets: Mapping[str, Subset],
    failures: Sequence[Failure],
) -> Settings:
    """Return everything that `summary.json` records but the means of the scores."""
    labels, modalities, folds = label_values(model.dataset_json, model.plans), model.modalities, model.entry["folds"]
    return {
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
        "failures": list(failures),
    }
