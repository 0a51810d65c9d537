"""Stage 3: incomplete modality adaptive fine-tuning with a frozen encoder (paper section 3.3)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_unimrseg.data.preprocessing import enable_incomplete_cases
from nnunetv2_unimrseg.data.segmentation_writer import write_whole_segmentations
from nnunetv2_unimrseg.method.augmentation import SubsetDeck
from nnunetv2_unimrseg.method.losses import feature_consistency, prediction_consistency
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.method.step_cost import incomplete_views
from nnunetv2_unimrseg.modalities import incomplete_subsets
from nnunetv2_unimrseg.trainers.base import LR_FACTOR
from nnunetv2_unimrseg.trainers.segmentation import SegmentationTrainer


def full_resolution(logits: Tensor | list[Tensor]) -> Tensor:
    """Return the full-resolution logits, which come first under deep supervision."""
    return logits if isinstance(logits, Tensor) else logits[0]


class UniMRSegStage3Trainer(SegmentationTrainer):
    """The complete view teaches the incomplete ones: loss(complete) + mean over incomplete views of their loss.

    An incomplete view's loss is feature_weight * L1 of encoder features + prediction_weight * distance of
    predictions, both to the teacher's, + incomplete_label_weight * nnU-Net's loss.
    """

    section: ClassVar[str] = "stage3"

    def prepare(self) -> None:
        count = len(self.modalities)
        self.deck = SubsetDeck(count)
        every = self.settings.subsets_per_step == "all"
        self.steps = 0
        self.every_subset = torch.tensor(incomplete_subsets(count)) if every else None

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> MissingModalityUNet:
        """Build the network with adapters and a frozen encoder."""
        enable_incomplete_cases(configuration_manager)
        write_whole_segmentations(plans_manager)
        network = build_network(
            configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision, adapters=True
        )
        network.freeze_encoder()
        return network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the decoder's parameters and the adapters', which start from nothing and may learn faster."""
        (group,) = super().parameter_groups()
        modules = self.unwrapped_network.adapters
        adapters = [] if modules is None else list(modules.parameters())
        of_adapters = set(map(id, adapters))
        decoder = [parameter for parameter in group["params"] if id(parameter) not in of_adapters]
        return [{**group, "params": decoder}, {"params": adapters, LR_FACTOR: self.settings.adapter_lr_factor}]

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        self.steps += 1
        if self.steps % self.settings.pairs_every:
            return self._one_view_loss(data, target)
        *earlier, last = subsets = self._deal_subsets(len(data))
        with self.without_synchronisation():  # each view is differentiated at once: no activations of two are held
            teacher_loss, *outputs = self._teacher_view(data, target)
            value = self.backward(teacher_loss)
            teacher = [output.detach() for output in outputs]
            for available in earlier:
                value = value + self.backward(self._student_view(data, target, available, *teacher) / len(subsets))
        return cast(Tensor, value + self._student_view(data, target, last, *teacher) / len(subsets))

    def _one_view_loss(self, data: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """See each sample complete or incomplete, in proportion to the labels' weights of a pair; equal on average."""
        labels = 1 + self.settings.incomplete_label_weight
        incomplete = self.deck.deal(len(data)).to(self.device, non_blocking=True)
        is_complete = torch.rand(len(data), 1, device=data.device) < 1 / labels
        return cast(Tensor, labels * self.loss(self.network(data, incomplete | is_complete), target))

    def _deal_subsets(self, num_samples: int) -> list[Tensor]:
        if self.every_subset is not None:
            every_subset = self.every_subset.to(self.device, non_blocking=True)
            return [subset.expand(num_samples, -1) for subset in every_subset]
        views = incomplete_views(self.settings, len(self.modalities))
        return list(self.deck.deal(num_samples * views).to(self.device, non_blocking=True).chunk(views))

    def _teacher_view(self, data: Tensor, target: Tensor | list[Tensor]) -> tuple[Tensor, ...]:
        logits, features = self.network(data, skip_adapters=True, return_features=True)
        return self.loss(logits, target), full_resolution(logits), *features

    def _student_view(
        self,
        data: Tensor,
        target: Tensor | list[Tensor],
        available: Tensor,
        teacher_logits: Tensor,
        *teacher_features: Tensor,
    ) -> Tensor:
        settings = self.settings
        logits, features = self.network(data, available, return_features=True)
        loss: Tensor = settings.feature_weight * feature_consistency(features, teacher_features)
        if settings.prediction_weight > 0:
            regions = self.label_manager.has_regions
            distance = prediction_consistency(full_resolution(logits), teacher_logits, regions=regions)
            loss = loss + settings.prediction_weight * distance
        if settings.incomplete_label_weight > 0 or self.is_ddp:  # which waits for gradients of all heads
            loss = loss + settings.incomplete_label_weight * self.loss(logits, target)
        return loss
