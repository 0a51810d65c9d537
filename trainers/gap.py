"""Whether the adapters adapt: how much of the gap between incomplete and complete features they close."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from nnunetv2_unimrseg.method.augmentation import SubsetDeck
from nnunetv2_unimrseg.method.networks.unet import present_modalities, zero_missing
from nnunetv2_unimrseg.trainers.segmentation import NUM_COMPARED_BATCHES, VALIDATION_SEED, SegmentationTrainer

ADAPTED, PLAIN = "distance_adapted", "distance_plain"
"""Distance of features to those of the complete view, by encoder stage."""


class GapTrainer(SegmentationTrainer):
    """Logs 1 - |adapted - complete| / |incomplete - complete|, for the features of each encoder stage."""

    curves: ClassVar[dict[str, str]] = {
        **SegmentationTrainer.curves,
        "gap_closed": "gap closed by the adapters, mean over their encoder stages",
    }

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.gap_deck = SubsetDeck(len(self.modalities), VALIDATION_SEED + self.local_rank)
        self.distances: list[dict[str, np.ndarray]] = []

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        if len(self.distances) < NUM_COMPARED_BATCHES:
            self.distances.append(self._feature_distances(batch["data"]))
        outputs: dict[str, Any] = super().validation_step(batch)
        return outputs

    @torch.no_grad()
    def _feature_distances(self, data: Tensor) -> dict[str, np.ndarray]:
        """Return how far the features of incomplete views are from the complete view's, with adapters and without.

        Both are `(S,)`, the mean absolute difference for each encoder stage; 0 where no sample of `data` is complete.
        """
        network = self.unwrapped_network
        subsets = self.gap_deck.deal(len(data))
        channels = self.modalities.channels
        complete = present_modalities(data[:, : self.modalities.num_channels], channels).all(1)
        if not complete.any():
            return {name: np.zeros(len(network.encoder.stages)) for name in (ADAPTED, PLAIN)}
        data, subsets = (part.to(self.device) for part in (data[complete], subsets[complete]))
        with self.autocast():
            whole = network.encode(data, torch.zeros_like(subsets))
            x, available = zero_missing(data, channels, subsets)
            adapted, plain = (network.encode(x, ~available, skip_adapters=skip) for skip in (False, True))
        return {
            name: np.array([float(l1_loss(one.float(), to.float())) for one, to in zip(view, whole, strict=True)])
            for name, view in ((ADAPTED, adapted), (PLAIN, plain))
        }

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        adapted, plain = (
            np.sum(self.from_all_ranks(np.sum([entry[name] for entry in self.distances], axis=0)), axis=0)
            for name in (ADAPTED, PLAIN)
        )
        super().on_validation_epoch_end(val_outputs)
        with np.errstate(invalid="ignore", divide="ignore"):
            gap_closed = 1 - adapted / plain
        mean = float(np.mean(gap_closed[self.unwrapped_network.first_adapter :]))
        self.logger.log("gap_closed", mean, self.current_epoch)
        self.print_to_log_file("Gap closed in each encoder stage", np.round(gap_closed, 4).tolist())
