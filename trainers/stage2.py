"""Stage 2: modality-invariant contrastive learning beside segmentation (paper section 3.2)."""

from __future__ import annotations

import zlib
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.augmentation import draw_subsets
from nnunetv2_unimrseg.method.losses import NegativesMemory, multi_stage_nt_xent
from nnunetv2_unimrseg.trainers.segmentation import SegmentationTrainer
from nnunetv2_unimrseg.utils.distributed import gather_with_gradient


class UniMRSegStage2Trainer(SegmentationTrainer):
    """Every `pairs_every`-th step: mean of nnU-Net's loss on two views of each sample + contrastive_weight * NT-Xent.

    The other steps look at one of the two views, with nnU-Net's loss alone. Unlabelled samples take part in the
    contrast, and are drawn for the steps that have it.
    """

    section: ClassVar[str] = "stage2"

    def prepare(self) -> None:
        settings = self.settings
        rarely_drops = settings.subset_sampling == "per_modality" and settings.dropout_probability < 0.01
        if settings.views == "complete_and_incomplete" and rarely_drops:
            raise UserError(
                f"stage2.views = 'complete_and_incomplete' needs incomplete views, but stage2.dropout_probability = "
                f"{settings.dropout_probability} hardly ever drops a modality. Set it to 0.01 or more with "
                "`unimrseg configure`, or use stage2.subset_sampling = 'uniform'."
            )

        self.steps = 0
        self.forget_earlier_epochs()

    def forget_earlier_epochs(self) -> None:
        self.memory = NegativesMemory(self.settings.negatives_memory)

    @property
    def label_free_weight(self) -> float:
        return float(self.settings.contrastive_weight)

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        self.steps += 1
        first_subsets, second_subsets = self._draw_views(len(data))
        labelled = self.labelled_samples(batch)
        if self.steps % self.settings.pairs_every:
            use_first = torch.rand(len(data), 1, device=self.device) < 0.5
            one_view = self.network(data, torch.where(use_first, first_subsets, second_subsets))
            return cast(Tensor, self.supervised_loss(one_view, target, labelled))
        patients = torch.tensor([zlib.crc32(self.patient_name(str(key)).encode()) for key in batch["keys"]])
        patients = patients.to(self.device, non_blocking=True)
        first_loss, *first = self._run_first_view(data, target, first_subsets, labelled)
        second_loss, *second = self._view(data, target, second_subsets, labelled)
        loss = (first_loss + second_loss) / 2
        if self.settings.contrastive_weight == 0:
            return loss
        if self.is_ddp:
            first, second, (patients,) = (gather_with_gradient(part) for part in (first, second, [patients]))
        contrast = multi_stage_nt_xent(first, second, patients, self.settings.temperature, self.memory)
        self.memory.add(first, second, patients)
        return cast(Tensor, loss + self.settings.contrastive_weight * contrast)

    def _draw_views(self, num_samples: int) -> list[Tensor]:
        count = len(self.modalities)
        second = draw_subsets(num_samples, count, self.settings, complete_allowed=self.settings.views == "two_subsets")
        if self.settings.views == "two_subsets":
            first = draw_subsets(num_samples, count, self.settings)
        else:
            first = torch.ones_like(second)
        return [subsets.to(self.device, non_blocking=True) for subsets in (first, second)]

    def _run_first_view(self, *view: Any) -> tuple[Tensor, ...]:
        """See the view that is differentiated last.

        With `checkpoint_views` its activations are not kept: it is seen again once those of the second view are gone.
        """
        return (
            checkpoint(self._view, *view, use_reentrant=False) if self.settings.checkpoint_views else self._view(*view)
        )

    def _view(
        self, data: Tensor, target: Tensor | list[Tensor], available: Tensor, labelled: Tensor | None
    ) -> tuple[Tensor, ...]:
        logits, features = self.network(data, available, return_features=True)
        pooled = [stage.mean(tuple(range(2, stage.ndim)), dtype=torch.float32) for stage in features]
        return self.supervised_loss(logits, target, labelled), *pooled
