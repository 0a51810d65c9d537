"""The control: stock nnU-Net with modality dropout (arXiv 2602.20218), which the three stages must beat."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor

from nnunetv2_unimrseg.method.augmentation import draw_subsets
from nnunetv2_unimrseg.trainers.retrieval import RetrievalTrainer


class UniMRSegModalityDropoutTrainer(RetrievalTrainer):
    """One view a step, with a random subset of the modalities (complete among them) and nnU-Net's own loss."""

    section: ClassVar[str] = "modality_dropout"

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        available = draw_subsets(len(data), len(self.modalities), self.settings)
        available = available.to(self.device, non_blocking=True)
        return cast(Tensor, self.loss(self.network(data, available), target))
