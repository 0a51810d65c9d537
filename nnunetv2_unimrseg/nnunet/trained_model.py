"""Reading a trained model's folder, and checking that the model can segment cases that lack modalities."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_unimrseg.errors import UserError, nearest
from nnunetv2_unimrseg.nnunet.checkpoints import adapter_differences, plans_differences, read_checkpoint
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.discovery import VARIABLE, append_extension_folder
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.files import read_json

Fold = int | str

_ONLY_FOR_TRAINING = ("optimizer_state", "grad_scaler_state")
"""Entries of a checkpoint; the optimizer's state is as large as the weights."""


@contextlib.contextmanager
def findable_trainers() -> Iterator[None]:
    """Let nnU-Net find the trainers of this package for a while, whether or not nnUNet_extTrainer names them."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = append_extension_folder(before)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def trained_checkpoints(
    folder: Path, folds: Sequence[Fold] | None, checkpoint_name: str
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read the checkpoints of a model of any trainer one after another, each checked against the folder's plans.

    Args:
        folder: the folder that holds `fold_X`, plans.json and dataset.json.
        folds: the folds to use; None for all that have the checkpoint.
        checkpoint_name: the file to look for in each fold.

    Yields:
        The path of each checkpoint, and its content without the state of the optimizer, which is dropped at once.

    Raises:
        UserError: when the folder, a fold or its checkpoint is absent, a file is damaged, dataset.json has mistakes,
            or the checkpoint does not fit the folder's plans.
    """
    if not folder.is_dir():
        models = _trained_in(folder.parent)
        raise UserError(
            f"There is no trained model {folder}.{nearest(folder.name, models)} "
            f"{folder.parent} holds: {', '.join(models) or 'no trained model; train one first (`unimrseg train`)'}."
        )
    paths = _checkpoints(folder, folds, checkpoint_name)
    plans, _ = read_json(folder / "plans.json"), read_dataset_json(folder / "dataset.json")
    for path in paths:
        checkpoint = {key: value for key, value in read_checkpoint(path).items() if key not in _ONLY_FOR_TRAINING}
        _check_plans(checkpoint, plans, path)
        yield path, checkpoint


def segmentation_checkpoints(
    folder: Path, folds: Sequence[Fold] | None, checkpoint_name: str, *, any_trainer: bool = False
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read the checkpoints of a model that segments cases with missing modalities; see `trained_checkpoints`.

    Args:
        folder: the folder that holds `fold_X`, plans.json and dataset.json.
        folds: the folds to use; None for all that have the checkpoint.
        checkpoint_name: the file to look for in each fold.
        any_trainer: whether a model that was not trained for missing modalities will do.

    Raises:
        UserError: also when the model does not segment (with missing modalities).
    """
    for path, checkpoint in trained_checkpoints(folder, folds, checkpoint_name):
        _check_trainer(checkpoint, path, any_trainer)
        yield path, checkpoint


def build_trained_network(
    checkpoint: Mapping[str, Any],
    path: Path,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> nn.Module:
    """Build the network that a checkpoint's trainer predicts with, as nnU-Net's predictor does, and load its weights.

    Raises:
        UserError: when nnU-Net cannot find the trainer.
    """
    build = _find_trainer(str(checkpoint["trainer_name"]), path).build_network_architecture
    channels = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    heads = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    described: tuple[Any, ...] = (plans_manager, configuration_manager)
    if "plans_manager" not in inspect.signature(build).parameters:  # trainers written for nnU-Net before 2.8
        described = (
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
        )
    network: nn.Module = build(*described, channels, heads, enable_deep_supervision=False)
    network.load_state_dict(checkpoint["network_weights"])
    return network


def _trained_in(folder: Path) -> list[str]:
    return sorted({path.parts[-3] for path in folder.glob("*__*__*/fold_*/checkpoint_*.pth")})


def _checkpoints(folder: Path, folds: Sequence[Fold] | None, checkpoint_name: str) -> list[Path]:
    trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}"))
    wanted = [fold for fold in trained if fold != "all"] if folds is None else [str(fold) for fold in folds]
    absent = [fold for fold in wanted if fold not in trained]
    if absent or not wanted:
        names = sorted({path.name for path in folder.glob("fold_*/checkpoint_*.pth")})
        if trained:
            advice = f"Trained folds: {', '.join(trained)}; choose them with -f {' '.join(trained)}."
        elif names:
            advice = f"No fold has it; there are: {', '.join(names)}.{nearest(checkpoint_name, names)}"
        else:
            advice = "No fold has been trained; train one first (`unimrseg train`)."
        which = f"fold {', '.join(absent)}" if absent else "any fold"
        raise UserError(f"{folder} has no {checkpoint_name} for {which}. {advice}")
    return [folder / f"fold_{fold}" / checkpoint_name for fold in wanted]


def _check_trainer(checkpoint: Mapping[str, Any], path: Path, any_trainer: bool) -> None:
    name, section = str(checkpoint.get("trainer_name")), find_section(checkpoint, path)
    if section == "stage1":
        raise UserError(
            f"{path} is a stage-1 model: it reconstructs images and cannot segment. Train stages 2 and 3 "
            f"(-tr {TRAINER_OF_SECTION['stage2']}, then {TRAINER_OF_SECTION['stage3']}) and predict with stage 3."
        )
    if section is None and not any_trainer:
        start = path.parent.parent / "fold_{fold}" / path.name
        raise UserError(
            f"{path} was trained by {name}, which needs every modality. Train what it lacks, with the same plans (-p): "
            f"`unimrseg train DATASET CONFIGURATION FOLD --from-checkpoint '{start}' --keep-complete`."
        )


def find_section(checkpoint: Mapping[str, Any], path: Path) -> str | None:
    """Return the section of the configuration that a checkpoint's trainer reads; None for other packages' trainers.

    Raises:
        UserError: when nnU-Net cannot find the trainer.
    """
    name = str(checkpoint.get("trainer_name"))
    known = next((section for section, trainer in TRAINER_OF_SECTION.items() if trainer == name), None)
    return known or getattr(_find_trainer(name, path), "section", None)


def _find_trainer(name: str, path: Path) -> type[nnUNetTrainer]:
    with findable_trainers(), contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints where it found the trainer
        try:
            trainer: type[nnUNetTrainer] = recursive_find_trainer_class_by_name(name)
            return trainer
        except RuntimeError:
            raise UserError(
                f"{path} was trained by {name}, which nnU-Net cannot find. If it is a trainer of your own, add its "
                f"folder to {VARIABLE} (now: {os.environ[VARIABLE]})."
            ) from None


def _check_plans(checkpoint: Mapping[str, Any], plans: dict[str, Any], path: Path) -> None:
    configuration = checkpoint.get("init_args", {}).get("configuration")
    known = plans.get("configurations", {})
    plans_file = path.parent.parent / "plans.json"
    if configuration not in known:
        raise UserError(
            f"{plans_file} has no configuration '{configuration}', which {path} was trained with."
            f"{nearest(configuration, known)} It has: {', '.join(known) or 'none'}."
        )
    ours = PlansManager(plans).get_configuration(configuration).configuration
    different = plans_differences(checkpoint, ours)
    section = find_section(checkpoint, path)
    if section in ("stage3", "retrofit"):
        different += adapter_differences(checkpoint, ours, section)
    if different:
        raise UserError(
            f"{path} does not fit the plans beside it, {plans_file} (rewritten when another fold was trained?):\n  - "
            + "\n  - ".join(different)
            + "\nTrain this fold again, or predict with the other folds only (-f)."
        )
