"""Stage 2: modality-invariant contrastive learning beside segmentation (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.augmentation import draw_subsets
from nnunetv2_unimrseg.method.contrast import NegativesMemory, multi_stage_nt_xent
from nnunetv2_unimrseg.method.losses import certainty, prediction_consistency
from nnunetv2_unimrseg.method.networks.unet import present_modalities, usable_modalities
from nnunetv2_unimrseg.trainers.learning_rates import ANNEALED, LR_FACTOR
from nnunetv2_unimrseg.trainers.retrieval import RetrievalTrainer
from nnunetv2_unimrseg.trainers.segmentation import full_resolution
from nnunetv2_unimrseg.trainers.teacher import AverageTeacher
from nnunetv2_unimrseg.utils.distributed import gather_with_gradient


class UniMRSegStage2Trainer(RetrievalTrainer):
    """nnU-Net's loss on one view of each sample + in every `pairs_every`-th step contrastive_weight * NT-Xent.

    NT-Xent compares that view with a second one, which a moving average of the network sees. (With `second_view` at
    'network' it sees both views, of half of the batch, and learns from the labels on both.) Unlabelled samples take
    part in the contrast, and have a teacher: the same moving average.
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
        self.teacher: AverageTeacher | None = None

    def _step(self, loss: Tensor) -> None:
        super()._step(loss)
        if self.teacher is not None:
            self.teacher.follow(self.unwrapped_network)

    @property
    def label_free_weight(self) -> float:
        return float(self.settings.contrastive_weight + self.settings.teacher_weight)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the decoder's parameters and the encoder's, whose rate decays to zero, for stage 3 freezes them."""
        encoder, others = self.learning_parameters("encoder.")
        return [{"params": others, LR_FACTOR: 1.0}, {"params": encoder, LR_FACTOR: 1.0, ANNEALED: True}]

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        self.steps += 1
        compares = self.steps % self.settings.pairs_every == 0
        if compares and self.settings.second_view == "network":
            return self._loss_of_pairs(data, target, batch)
        labelled = self.labelled_samples(batch)
        available = self._draw_one_view(len(data)).to(self.device, non_blocking=True)
        if not compares or self.settings.contrastive_weight == 0:
            return self._loss_of_view(self.network(data, available), data, target, available, labelled)
        loss, *statistics = self._view(data, target, available, labelled)
        second = self.average().encoder_statistics(data, self._draw_second_view(available))
        return loss + self._contrast(statistics, second, batch)

    def _loss_of_pairs(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        pairs = self._samples_of_pairs(len(data))
        batch = {"keys": batch["keys"][pairs]}
        data, target = data[pairs], [scale[pairs] for scale in target] if isinstance(target, list) else target[pairs]
        labelled = self.labelled_samples(batch)
        first_subsets, second_subsets = self._draw_views(len(data))
        first_loss, *first = self._view(data, target, first_subsets, labelled)
        second_loss, *second = self._view(data, target, second_subsets, labelled)
        loss = (first_loss + second_loss) / 2
        return loss if self.settings.contrastive_weight == 0 else loss + self._contrast(first, second, batch)

    def _contrast(self, first: Sequence[Tensor], second: Sequence[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return weighted NT-Xent of the statistics of two views, and remember those of the second one.

        The memory holds nothing of the network itself where an average sees the second views: that a feature is of the
        present network, and not of an earlier one, would tell the positive from the negatives.
        """
        patients = self.patient_numbers(batch).to(self.device, non_blocking=True)
        if self.is_ddp:
            first, second, (patients,) = (gather_with_gradient(part) for part in (first, second, [patients]))
        contrast = multi_stage_nt_xent(first, second, patients, self.settings.temperature, self.memory)
        self.memory.add(second, patients)
        return cast(Tensor, self.settings.contrastive_weight * contrast)

    def average(self) -> AverageTeacher:
        """Return the moving average of the network; it begins with the first call."""
        if self.teacher is None:
            self.teacher = AverageTeacher(self.unwrapped_network, self.settings.teacher_decay)
        return self.teacher

    def _samples_of_pairs(self, batch_size: int) -> slice:
        """Return every second sample, at most half of them but at least one; another half in the next such step."""
        first = (self.steps // self.settings.pairs_every) % 2 if batch_size > 1 else 0
        return slice(first, first + 2 * max(1, batch_size // 2) - 1, 2)

    def _draw_one_view(self, num_samples: int) -> Tensor:
        """Return the subsets of one of the two views of a pair; of two random subsets that is the control's draw."""
        if self.settings.views == "two_subsets":
            return draw_subsets(num_samples, len(self.modalities), self.settings)
        incomplete = draw_subsets(num_samples, len(self.modalities), self.settings, complete_allowed=False)
        return incomplete | (torch.rand(num_samples, 1) < 0.5)

    def _draw_second_view(self, first: Tensor) -> Tensor:
        """Return `(B, M)` subsets for the average, as `views` says: random ones, or what makes a pair of `first`."""
        if self.settings.views == "two_subsets":
            return self._draw_one_view(len(first)).to(first.device, non_blocking=True)
        incomplete = draw_subsets(len(first), len(self.modalities), self.settings, complete_allowed=False)
        return torch.where(first.all(1, keepdim=True), incomplete.to(first.device), True)

    def _draw_views(self, num_samples: int) -> list[Tensor]:
        count = len(self.modalities)
        second = draw_subsets(num_samples, count, self.settings, complete_allowed=self.settings.views == "two_subsets")
        if self.settings.views == "two_subsets":
            first = draw_subsets(num_samples, count, self.settings)
        else:
            first = torch.ones_like(second)
        return [subsets.to(self.device, non_blocking=True) for subsets in (first, second)]

    def _view(
        self, data: Tensor, target: Tensor | list[Tensor], available: Tensor, labelled: Tensor | None
    ) -> tuple[Tensor, ...]:
        logits, statistics = self.network(data, available, return_statistics=True)
        return self._loss_of_view(logits, data, target, available, labelled), *statistics

    def _loss_of_view(
        self,
        logits: Tensor | list[Tensor],
        data: Tensor,
        target: Tensor | list[Tensor],
        available: Tensor,
        labelled: Tensor | None,
    ) -> Tensor:
        """Return nnU-Net's loss of labelled samples plus the distance of unlabelled ones to the teacher."""
        loss: Tensor = self.supervised_loss(logits, target, labelled)
        if labelled is None or not self._teaches():
            return loss
        present = present_modalities(data[:, : self.modalities.num_channels], self.modalities.channels)
        taught = (usable_modalities(available, present) != present).any(1)
        taught[labelled] = False
        taught = taught.nonzero()[:, 0]
        if len(taught) == 0:
            return loss
        advice = self.average().predict(data[taught])
        regions = self.label_manager.has_regions
        distance = prediction_consistency(
            full_resolution(logits)[taught], advice, regions=regions, weight=certainty(advice, regions=regions)
        )
        return loss + float(self.settings.teacher_weight) * len(taught) / len(data) * distance

    def _teaches(self) -> bool:
        return bool(
            self.settings.teacher_weight > 0 and self.current_epoch >= self.settings.teacher_start * self.num_epochs
        )
