"""Whether the encoder tells samples apart and views of one sample not: retrieval, for held-out patients."""

from __future__ import annotations

import zlib
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from nnunetv2_unimrseg.method.augmentation import SubsetDeck
from nnunetv2_unimrseg.method.contrast import retrieval
from nnunetv2_unimrseg.trainers.segmentation import NUM_COMPARED_BATCHES, VALIDATION_SEED, SegmentationTrainer

Views = tuple[list[Tensor], list[Tensor], Tensor]
"""Statistics by encoder stage of complete and of incomplete views, and the samples' patients."""


class RetrievalTrainer(SegmentationTrainer):
    """Logs how often the complete and an incomplete view of a validation patch find each other (see `retrieval`)."""

    curves: ClassVar[dict[str, str]] = {
        **SegmentationTrainer.curves,
        "retrieval": "retrieval of a sample by its other view, mean over encoder stages",
    }

    def patient_numbers(self, batch: dict[str, Any]) -> Tensor:
        """Return a number for the patient of each sample, `(B,)`, equal for samples of one patient."""
        return torch.tensor([zlib.crc32(self.patient_name(str(key)).encode()) for key in batch["keys"]])

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.compared: list[Views] = []
        self.compared_deck = SubsetDeck(len(self.modalities), VALIDATION_SEED + self.local_rank)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        outputs: dict[str, Any] = super().validation_step(batch)
        if len(self.compared) < NUM_COMPARED_BATCHES:
            self.compared.append(self._compare(batch))
        return outputs

    @torch.no_grad()
    def _compare(self, batch: dict[str, Any]) -> Views:
        data = batch["data"].to(self.device, non_blocking=True)
        incomplete = self.compared_deck.deal(len(data)).to(self.device)
        with self.autocast():
            views = [self.unwrapped_network.encoder_statistics(data, available) for available in (None, incomplete)]
        complete, other = ([stage.cpu() for stage in view] for view in views)
        return complete, other, self.patient_numbers(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        compared = [views for part in self.from_all_ranks(self.compared) for views in part]
        complete, other = (
            [torch.cat(stage) for stage in zip(*(views[side] for views in compared), strict=True)] for side in (0, 1)
        )
        patients = torch.cat([patients for *_, patients in compared])
        shares, chances = zip(*map(retrieval, complete, other, [patients] * len(complete)), strict=True)
        self.logger.log("retrieval", float(np.mean(shares)), self.current_epoch)
        self.print_to_log_file(
            "Retrieval in each encoder stage",
            np.round(cast("tuple[float, ...]", shares), 4).tolist(),
            f"(chance {chances[0]:.4f})",
        )
