"""Stage 3: incomplete modality adaptive fine-tuning with a frozen encoder (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_unimrseg.method.augmentation import SubsetDeck
from nnunetv2_unimrseg.method.losses import feature_consistency, prediction_consistency
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet, usable_modalities
from nnunetv2_unimrseg.method.step_cost import incomplete_views
from nnunetv2_unimrseg.modalities import incomplete_subsets
from nnunetv2_unimrseg.nnunet.checkpoints import ADAPTERS
from nnunetv2_unimrseg.trainers.base import build_segmentation_network
from nnunetv2_unimrseg.trainers.gap import GapTrainer
from nnunetv2_unimrseg.trainers.learning_rates import LR_FACTOR, relative_group
from nnunetv2_unimrseg.trainers.resuming import carry_momentum
from nnunetv2_unimrseg.trainers.segmentation import full_resolution


class UniMRSegStage3Trainer(GapTrainer):
    """The complete view teaches the incomplete ones: labels + mean over incomplete views of their distance to it.

    `labels` is nnU-Net's loss, the average over the complete view and, with incomplete_label_weight, the incomplete
    ones. An incomplete view's distance is feature_weight * L1 of encoder features + prediction_weight * distance of
    predictions, both to the teacher's. The complete view of a case that lacks modalities is all that it has.
    Unlabelled samples take part in all terms but nnU-Net's loss.
    """

    section: ClassVar[str] = "stage3"

    def prepare(self) -> None:
        count = len(self.modalities)
        self.forget_earlier_epochs()
        every = self.settings.subsets_per_step == "all"
        self.steps = 0
        self.every_subset = torch.tensor(incomplete_subsets(count)) if every else None

    def forget_earlier_epochs(self) -> None:
        self.deck = SubsetDeck(len(self.modalities))

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> MissingModalityUNet:
        """Build the network with adapters and a frozen encoder."""
        channels = num_input_channels, num_output_channels
        network: MissingModalityUNet = build_segmentation_network(
            plans_manager, configuration_manager, channels, enable_deep_supervision, adapters=True
        )
        network.freeze_encoder()
        return network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the decoder's parameters and the adapters', which start from nothing and learn in relative steps.

        Their gradients are too small for nnU-Net's learning rates: a mean over voxels, of features that are no logits.
        """
        adapters, decoder = self.learning_parameters(ADAPTERS)
        relative = relative_group(adapters, self.settings.adapter_lr, self.settings.initial_lr)
        groups = [{"params": decoder, LR_FACTOR: 1.0}, relative]
        return [group for group in groups if group["params"]]

    def take_initial_weights(self, path: Path) -> dict[str, Any]:
        """Copy the weights of the stage before, and go on with its momentum."""
        checkpoint: dict[str, Any] = super().take_initial_weights(path)
        if carry_momentum(self.unwrapped_network, self.optimizer, checkpoint):
            self.print_to_log_file("What goes on learning keeps the momentum of that training.")
        return checkpoint

    @property
    def incomplete_label_share(self) -> float:
        """Weight of the labels on incomplete views in the average over complete and incomplete ones."""
        weight = float(self.settings.incomplete_label_weight)
        return weight / (1 + weight)

    @property
    def label_free_weight(self) -> float:
        return float(self.settings.feature_weight + self.settings.prediction_weight)

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        self.steps += 1
        labelled = self.labelled_samples(batch)
        if self.steps % self.settings.pairs_every:
            return self._one_view_loss(data, target, labelled)
        own = self.own_modalities(batch)
        *earlier, last = subsets = self._deal_subsets(len(data))
        with self.without_synchronisation():  # each view is differentiated at once: no activations of two are held
            teacher_loss, *outputs = self._teacher_view(data, target, labelled)
            value = self.backward((1 - self.incomplete_label_share) * teacher_loss)
            teacher = [output.detach() for output in outputs]
            student = partial(self._student_view, data, target, labelled, own)
            for available in earlier:
                value = value + self.backward(student(available, *teacher) / len(subsets))
        return cast(Tensor, value + student(last, *teacher) / len(subsets))

    def _one_view_loss(self, data: Tensor, target: Tensor | list[Tensor], labelled: Tensor | None) -> Tensor:
        """See each sample complete or incomplete, in proportion to the labels' weights of a pair; equal on average."""
        incomplete = self.deck.deal(len(data)).to(self.device, non_blocking=True)
        is_complete = torch.rand(len(data), 1, device=data.device) < 1 - self.incomplete_label_share
        logits = self.network(data, incomplete | is_complete)
        return cast(Tensor, self.supervised_loss(logits, target, labelled))

    def _deal_subsets(self, num_samples: int) -> list[Tensor]:
        """Return the `(B, M)` booleans of each incomplete view of this step, on the CPU."""
        if self.every_subset is not None:
            return [subset.expand(num_samples, -1) for subset in self.every_subset]
        views = incomplete_views(self.settings, len(self.modalities))
        return list(self.deck.deal(num_samples * views).chunk(views))

    def _teacher_view(self, data: Tensor, target: Tensor | list[Tensor], labelled: Tensor | None) -> tuple[Tensor, ...]:
        logits, features = self.network(data, skip_adapters=True, return_features=True)
        return self.supervised_loss(logits, target, labelled), full_resolution(logits), *features

    def _student_view(
        self,
        data: Tensor,
        target: Tensor | list[Tensor],
        labelled: Tensor | None,
        own: Tensor | None,
        available: Tensor,
        *teacher: Tensor,
    ) -> Tensor:
        logits, features = self.see_incomplete(data, available.to(self.device, non_blocking=True))
        taught = self._taught_samples(available, own)
        if taught is None:
            loss = self._consistency(logits, features, *teacher)
        elif len(taught):
            seen = [output[taught] for output in (full_resolution(logits), *features, *teacher)]
            student_logits, *others = seen
            share = len(taught) / len(data)
            loss = share * self._consistency(student_logits, others[: len(features)], *others[len(features) :])
        else:
            loss = full_resolution(logits)[:0].float().sum()
        weight = self.incomplete_label_share
        if weight > 0 or self.is_ddp:  # which waits for gradients of all heads
            loss = loss + weight * self.supervised_loss(logits, target, labelled)
        return loss

    def see_incomplete(self, data: Tensor, available: Tensor) -> tuple[Tensor | list[Tensor], list[Tensor]]:
        """Return logits and features of views that all lack a modality."""
        return cast(tuple[Any, Any], self.network(data, available, return_features=True))

    def _taught_samples(self, available: Tensor, own: Tensor | None) -> Tensor | None:
        """Return the indices, on the device, of the samples whose teacher sees more than the student; None for all.

        A subset may leave a case all that it has. Such a student must not match the teacher, which saw no more:
        its adapters would learn to do nothing for a modality that they have to replace in other cases.
        """
        if own is None:
            return None
        sees_less = (usable_modalities(available, own) != own).any(1)
        return None if sees_less.all() else sees_less.nonzero()[:, 0].to(self.device, non_blocking=True)

    def _consistency(
        self,
        logits: Tensor | list[Tensor],
        features: Sequence[Tensor],
        teacher_logits: Tensor,
        *teacher_features: Tensor,
    ) -> Tensor:
        settings = self.settings
        loss: Tensor = settings.feature_weight * feature_consistency(features, teacher_features)
        if settings.prediction_weight > 0:
            regions = self.label_manager.has_regions
            distance = prediction_consistency(full_resolution(logits), teacher_logits, regions=regions)
            loss = loss + settings.prediction_weight * distance
        return loss
