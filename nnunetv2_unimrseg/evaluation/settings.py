"""What an evaluation records besides its scores: the model, the cases, the conventions, the versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.in_checkpoint import EXTERNAL, VALIDATION
from nnunetv2_unimrseg.evaluation.conventions import FAILURE_DICE
from nnunetv2_unimrseg.evaluation.metrics import LabelValue
from nnunetv2_unimrseg.evaluation.evaluation import FORMAT
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint, weights_sha256
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.paths import read_json
from nnunetv2_unimrseg.nnunet.trained_model import check_trained_model, section_of
from nnunetv2_unimrseg.utils.versions import versions_of

TRAINED_WITH = (
    "training cases of fold 'all', predicted by the very model that was trained with them: too good to be true"
)
SOURCES = {
    VALIDATION: "validation cases of the folds, each predicted by the fold that was not trained with it",
    EXTERNAL: "cases given besides the training data",
}
KNOWN = "their files are left out before preprocessing, and the network knows which are missing"
ZERO_FILLED = (
    "their files are left out before preprocessing, and their channels are zero-filled after normalisation: this "
    "network was not made for missing modalities"
)


@dataclass(frozen=True)
class Model:
    """A trained model whose checkpoints have been checked.

    Attributes:
        folder: holds `fold_X`.
        folds: names of the folds.
        checkpoints: one file a fold.
        plans, dataset_json: as they lie in the folder.
        configuration: name of the plans' configuration.
        trainer: name of the trainer's class.
        knows_missing: whether it was made for missing modalities.
        weights_sha256: of each fold.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoints: tuple[Path, ...]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    trainer: str
    knows_missing: bool
    weights_sha256: dict[str, str]

    @property
    def modalities(self) -> Modalities:
        """The modalities that it was trained with."""
        return Modalities.from_dataset_json(self.dataset_json)

    def to_json(self) -> dict[str, Any]:
        """Return what `summary.json` says of the model."""
        return {
            "dataset": self.plans["dataset_name"],
            "trainer": self.trainer,
            "plans": self.plans["plans_name"],
            "configuration": self.configuration,
            "folds": list(self.folds),
            "checkpoint": self.checkpoints[0].name,
            "weights_sha256": dict(self.weights_sha256),
            "missing_modalities": KNOWN if self.knows_missing else ZERO_FILLED,
        }


def open_model(folder: Path, folds: Sequence[str], checkpoint_name: str) -> Model:
    """Check and describe a trained model of any nnU-Net trainer that segments.

    Raises:
        UserError: see `check_trained_model`; and when a label is called as the mean over the labels is.
    """
    paths = check_trained_model(folder, folds, checkpoint_name, any_trainer=True)
    dataset_json = read_dataset_json(folder / "dataset.json")
    if MEAN_LABEL in dataset_json["labels"]:
        raise UserError(
            f"A label is called '{MEAN_LABEL}', as the mean over the labels is here. Rename it in {folder}."
        )
    checkpoints = [read_checkpoint(path) for path in paths]
    return Model(
        folder=folder,
        folds=tuple(folds),
        checkpoints=tuple(paths),
        plans=read_json(folder / "plans.json"),
        dataset_json=dataset_json,
        configuration=checkpoints[0]["init_args"]["configuration"],
        trainer=checkpoints[0]["trainer_name"],
        knows_missing=section_of(checkpoints[0], paths[0]) is not None,
        weights_sha256={
            fold: weights_sha256(checkpoint["network_weights"])
            for fold, checkpoint in zip(folds, checkpoints, strict=True)
        },
    )


def label_values(dataset_json: Mapping[str, Any], plans: Mapping[str, Any]) -> dict[str, LabelValue]:
    """Return the foreground labels, or regions where the dataset has them, by name: what nnU-Net validates."""
    manager = PlansManager(dict(plans)).get_label_manager(dict(dataset_json))
    scored = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    scored = [tuple(value) if isinstance(value, list | tuple) else value for value in scored]
    names = {}
    for name, value in dataset_json["labels"].items():
        value = tuple(value) if isinstance(value, list | tuple) else value
        if not manager.has_regions and isinstance(value, tuple):  # nnU-Net takes a list of one value for that value
            value = value[0]
        if value in scored and name != "ignore":
            names[name] = value
    return names


def settings_of(
    model: Model,
    *,
    prediction: Mapping[str, Any],
    kind: str,
    empty: str,
    cases: Sequence[EvaluationCase],
    subsets: Mapping[str, Subset],
    failures: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Return all that `summary.json` records besides the figures (see `results.Evaluation`)."""
    labels = label_values(model.dataset_json, model.plans)
    modalities = model.modalities
    return {
        "format": FORMAT,
        "name": f"{model.trainer}, fold{'s' if len(model.folds) > 1 else ''} {', '.join(model.folds)}",
        "versions": versions_of("nnunetv2", "torch", "monai"),
        "model": model.to_json(),
        "prediction": dict(prediction),
        "conventions": {"empty": empty, "failure_dice": FAILURE_DICE},
        "kind": kind,
        "source": TRAINED_WITH if kind == VALIDATION and "all" in model.folds else SOURCES[kind],
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
        "failures": [dict(failure) for failure in failures],
    }
