"""The model to evaluate: read, checked and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import ModelEntry
from nnunetv2_unimrseg.evaluation.metrics import LabelValue
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.checkpoints import weights_sha256
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.trained_model import find_section, segmentation_checkpoints
from nnunetv2_unimrseg.nnunet.types import DatasetJson, Plans
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
        checkpoints: the file of each fold, by the fold's name.
        in_memory: what `segmentation_checkpoints` yields, where all folds predict together. Otherwise it is empty: a
            fold is read again when its turn comes, so that the weights of one fold at a time are in memory.
        plans, dataset_json: as they lie in the folder.
        knows_missing: whether it was made for missing modalities.
        entry: what `summary.json` says of it.
    """

    folder: Path
    checkpoints: dict[str, Path]
    in_memory: list[tuple[Path, dict[str, Any]]]
    plans: Plans
    dataset_json: DatasetJson
    knows_missing: bool
    entry: ModelEntry

    @property
    def modalities(self) -> Modalities:
        """The modalities that it was trained with."""
        return Modalities.from_dataset_json(self.dataset_json)


def read_model(folder: Path, folds: Sequence[str], checkpoint_name: str, *, together: bool) -> Model:
    """Check and describe a trained model of any nnU-Net trainer that segments.

    Args:
        folder: holds `fold_X`.
        folds: the folds to use.
        checkpoint_name: the file to read from each fold.
        together: whether all folds predict together.

    Raises:
        UserError: see `segmentation_checkpoints`; when a label is called as the mean over the labels is; for the
            second stage of a cascade.
    """
    paths, hashes, in_memory = {}, {}, []
    read = segmentation_checkpoints(folder, folds, checkpoint_name, any_trainer=True)
    for fold, (path, checkpoint) in zip(folds, read, strict=True):
        paths[fold], hashes[fold] = path, weights_sha256(checkpoint["network_weights"])
        if together:
            in_memory.append((path, checkpoint))
    configuration, trainer = checkpoint["init_args"]["configuration"], checkpoint["trainer_name"]
    knows_missing = find_section(checkpoint, path) is not None
    plans = cast(Plans, read_json(folder / "plans.json"))
    dataset_json = read_dataset_json(folder / "dataset.json")
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
        "trainer": trainer,
        "plans": plans["plans_name"],
        "configuration": configuration,
        "folds": list(folds),
        "checkpoint": checkpoint_name,
        "weights_sha256": hashes,
        "missing_modalities": KNOWN if knows_missing else ZERO_FILLED,
    }
    return Model(folder, paths, in_memory, plans, dataset_json, knows_missing, entry)


def label_values(dataset_json: DatasetJson, plans: Plans) -> dict[str, LabelValue]:
    """Return the foreground labels by name, or the regions where the dataset has them, as nnU-Net validates them."""
    manager = PlansManager(plans).get_label_manager(dataset_json)
    scored = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    scored = [tuple(value) if isinstance(value, list | tuple) else value for value in scored]
    names: dict[str, LabelValue] = {}
    for name, entry in dataset_json["labels"].items():
        value = tuple(entry) if isinstance(entry, list) else entry
        if not manager.has_regions and isinstance(value, tuple):  # nnU-Net takes a list of one value for that value
            value = value[0]
        if value in scored and name != "ignore":
            names[name] = value
    return names
