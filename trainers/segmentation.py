"""What the trainers that segment share: pseudo Dice for complete and for incomplete inputs."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor

from nnunetv2_unimrseg.method.augmentation import SubsetDeck
from nnunetv2_unimrseg.method.losses import Float32Loss, loss_of_labelled
from nnunetv2_unimrseg.method.networks.unet import (
    Channels,
    as_channels,
    expand_to_channels,
    present_modalities,
    usable_modalities,
)
from nnunetv2_unimrseg.trainers.base import UniMRSegTrainer
from nnunetv2_unimrseg.trainers.progress import ProgressLogger

COUNTS = ("tp_hard", "fp_hard", "fn_hard")
INCOMPLETE = "incomplete_"
VALIDATION_SEED = 12345
NUM_COMPARED_BATCHES = 12
"""So many validation batches are looked at for a part's own figure in an epoch (by each process)."""


def mark_missing(data: Tensor, available: Tensor, channels: Channels | None = None) -> Tensor:
    """Return `data` `(B, C, X, Y[, Z])` with NaN in the `channels` of the modalities that `available` `(B, M)` lacks.

    A sample that has none of the modalities that are to be available keeps its own. Without `channels` each modality
    has one.
    """
    channels = as_channels(channels or available.shape[1])
    images = sum(map(len, channels))
    kept = usable_modalities(available.to(data.device), present_modalities(data[:, :images], channels))
    kept = expand_to_channels(kept, channels)
    kept = torch.nn.functional.pad(kept, (0, data.shape[1] - images), value=True)
    return torch.where(kept.view(*kept.shape, *[1] * (data.ndim - 2)), data, math.nan)


def full_resolution(logits: Tensor | list[Tensor]) -> Tensor:
    """Return the full-resolution logits, which come first under deep supervision."""
    return logits if isinstance(logits, Tensor) else logits[0]


class SegmentationTrainer(UniMRSegTrainer):
    """Validates every batch twice, complete and with random incomplete subsets; `checkpoint_best` follows the mean."""

    curves: ClassVar[dict[str, str]] = {
        "dice_complete": "pseudo Dice, complete input",
        "dice_incomplete": "pseudo Dice, random incomplete subsets",
        "ema_fg_dice": "mean of both (moving average)",
    }
    """Key in the log -> what progress.png calls it."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.logger.local_logger = ProgressLogger(self.curves, "pseudo Dice and shares (0 to 1)")
        self.validation_deck = SubsetDeck(len(self.modalities), VALIDATION_SEED)

    def _build_loss(self) -> torch.nn.Module:
        loss = super()._build_loss()
        return Float32Loss(loss) if self.uses_bfloat16 else loss

    @property
    def unlabelled_share(self) -> float:
        return float(getattr(self.settings, "unlabelled_share", 0.0))

    @property
    def trains_with_unlabelled(self) -> bool:
        return super().trains_with_unlabelled and self.unlabelled_share > 0 and self.label_free_weight > 0

    @property
    def label_free_weight(self) -> float:
        """Weight of the losses that need no label."""
        return 0.0

    @property
    def mixed_every(self) -> int:
        return int(getattr(self.settings, "pairs_every", 1))

    def supervised_loss(
        self, logits: Tensor | list[Tensor], target: Tensor | list[Tensor], labelled: Tensor | None
    ) -> Tensor:
        """Return nnU-Net's loss of the samples `labelled` (see `labelled_samples`)."""
        if labelled is None:
            return cast(Tensor, self.loss(logits, target))
        return loss_of_labelled(self.loss, logits, target, labelled)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.validation_deck = SubsetDeck(len(self.modalities), VALIDATION_SEED + self.local_rank)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        subsets = self.validation_deck.deal(len(batch["data"]))
        incomplete_data = mark_missing(batch["data"], subsets, self.modalities.channels)
        target = batch["target"]
        untouched = [scale.clone() for scale in target] if isinstance(target, list) else target.clone()
        with self.autocast():
            complete = super().validation_step(batch)
            incomplete = super().validation_step({**batch, "data": incomplete_data, "target": untouched})
        outputs = {INCOMPLETE + name: incomplete[name] for name in COUNTS}
        outputs.update({name: complete[name] for name in COUNTS})
        outputs["loss"] = (complete["loss"] + incomplete["loss"]) / 2
        return outputs

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        outputs = collate_outputs(val_outputs)
        complete = self._pseudo_dice(outputs, "")
        incomplete = self._pseudo_dice(outputs, INCOMPLETE)
        losses = self.from_all_ranks(outputs["loss"])
        self.logger.log("dice_complete", float(np.nanmean(complete)), self.current_epoch)
        self.logger.log("dice_incomplete", float(np.nanmean(incomplete)), self.current_epoch)
        self.logger.log("dice_per_class_or_region", list((complete + incomplete) / 2), self.current_epoch)
        self.logger.log("mean_fg_dice", float(np.nanmean((complete, incomplete))), self.current_epoch)
        self.logger.log("val_losses", float(np.mean(np.concatenate(losses))), self.current_epoch)
        self.print_to_log_file("Pseudo dice, complete input  ", np.round(complete, 4).tolist())
        self.print_to_log_file("Pseudo dice, incomplete input", np.round(incomplete, 4).tolist())
        self.print_to_log_file("The pseudo dice below is the mean of both; the best checkpoint follows it.")

    def _pseudo_dice(self, outputs: dict[str, Any], prefix: str) -> np.ndarray:
        tp, fp, fn = (np.sum(self.from_all_ranks(np.sum(outputs[prefix + name], axis=0)), axis=0) for name in COUNTS)
        with np.errstate(invalid="ignore"):
            dice: np.ndarray = 2 * tp / (2 * tp + fp + fn)
            return dice.astype(float)
