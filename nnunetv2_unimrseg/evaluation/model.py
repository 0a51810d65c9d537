"""The model to evaluate: read, checked and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import ModelEntry
from nnunetv2_unimrseg.evaluation.metrics import LabelValue
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.checkpoints import weights_sha256
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.trained_model import find_section, segmentation_checkpoints
from nnunetv2_unimrseg.utils.files import read_json

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
        checkpoints: path and content of each fold's file, by the fold's name (see `segmentation_checkpoints`).
        plans, dataset_json: as they lie in the folder.
        configuration: name of the plans' configuration.
        knows_missing: whether it was made for missing modalities.
        entry: what `summary.json` says of it.
    """

    folder: Path
    checkpoints: dict[str, tuple[Path, dict[str, Any]]]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    knows_missing: bool
    entry: ModelEntry

    @property
    def modalities(self) -> Modalities:
        """The modalities that it was trained with."""
        return Modalities.from_dataset_json(self.dataset_json)


def read_model(folder: Path, folds: Sequence[str], checkpoint_name: str) -> Model:
    """Check and describe a trained model of any nnU-Net trainer that segments; each checkpoint is read once.

    Raises:
        UserError: see `segmentation_checkpoints`; when a label is called as the mean over the labels is; for the
            second stage of a cascade.
    """
    read = segmentation_checkpoints(folder, folds, checkpoint_name, any_trainer=True)
    checkpoints = dict(zip(folds, read, strict=True))
    path, first = checkpoints[folds[0]]
    configuration, knows_missing = first["init_args"]["configuration"], find_section(first, path) is not None
    plans, dataset_json = read_json(folder / "plans.json"), read_dataset_json(folder / "dataset.json")
    if MEAN_LABEL in dataset_json["labels"]:
        raise UserError(
            f"A label is called '{MEAN_LABEL}', as the mean over the labels is here. Rename it in {folder}."
        )
    if PlansManager(plans).get_configuration(configuration).previous_stage_name is not None:
        raise UserError(
            "This model is the second stage of a cascade, whose input depends on what the first made of each subset; "
            "that cannot be evaluated. Evaluate the first stage, or a model without cascade."
        )
    entry: ModelEntry = {
        "dataset": plans["dataset_name"],
        "trainer": first["trainer_name"],
        "plans": plans["plans_name"],
        "configuration": configuration,
        "folds": list(folds),
        "checkpoint": checkpoint_name,
        "weights_sha256": {
            fold: weights_sha256(checkpoint["network_weights"]) for fold, (_, checkpoint) in checkpoints.items()
        },
        "missing_modalities": KNOWN if knows_missing else ZERO_FILLED,
    }
    return Model(folder, checkpoints, plans, dataset_json, configuration, knows_missing, entry)


def label_values(dataset_json: Mapping[str, Any], plans: Mapping[str, Any]) -> dict[str, LabelValue]:
    """Return the foreground labels by name, or the regions where the dataset has them, as nnU-Net validates them."""
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
