"""A trained nnU-Net learns to segment incomplete cases; complete ones it segments as before, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.networks.retrofit import RetrofitUNet
from nnunetv2_unimrseg.nnunet.checkpoints import check_no_differences, input_differences
from nnunetv2_unimrseg.nnunet.paths import dataset_id
from nnunetv2_unimrseg.stages import SCRATCH
from nnunetv2_unimrseg.trainers.base import build_segmentation_network
from nnunetv2_unimrseg.trainers.segmentation import full_resolution
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer


class UniMRSegRetrofitTrainer(UniMRSegStage3Trainer):
    """Adapters and a decoder of their own learn, for incomplete views, what the trained nnU-Net says of complete ones.

    The loss is the mean over incomplete views of stage 3's for such a view. The teacher is what the network gives,
    without gradient, for all modalities that a case has: for a complete case the trained nnU-Net. Of a case that lacks
    one the trained nnU-Net knows nothing, so there it is what has been learned so far.
    """

    section: ClassVar[str] = "retrofit"

    @property
    def incomplete_label_share(self) -> float:
        return float(self.settings.incomplete_label_weight)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> RetrofitUNet:
        """Build the planned network, frozen, with adapters and a second decoder."""
        channels = num_input_channels, num_output_channels
        network = build_segmentation_network(
            plans_manager, configuration_manager, channels, enable_deep_supervision, adapters=True, keep_complete=True
        )
        return cast(RetrofitUNet, network)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        super().set_deep_supervision_enabled(enabled)
        cast(RetrofitUNet, self.unwrapped_network).incomplete_decoder.deep_supervision = enabled

    def initial_checkpoint(self) -> Path | None:
        """Return the trained nnU-Net's checkpoint.

        Raises:
            UserError: when `start_from` is not set, or names no file.
        """
        if self.settings.start_from in ("", SCRATCH):
            dataset, plans = dataset_id(self.plans_manager.dataset_name), self.plans_manager.plans_name
            raise UserError(
                f"{self.__class__.__name__} needs the checkpoint of a trained nnU-Net of the same plans, but "
                "retrofit.start_from does not name one. Run:\n"
                f"  unimrseg train {dataset} {self.configuration_name} {self.fold} -p {plans} "
                "--from-checkpoint PATH --keep-complete"
            )
        path: Path | None = super().initial_checkpoint()
        return path

    def take_initial_weights(self, path: Path) -> dict[str, Any]:
        """Copy the trained nnU-Net's weights, and mirror as it does.

        Raises:
            UserError: also when it would see other input than here, or gives its labels another meaning.
        """
        checkpoint: dict[str, Any] = super().take_initial_weights(path)
        configuration = self.configuration_manager.configuration
        plans, dataset_json = self.plans_manager.plans, self.dataset_json
        check_no_differences(path, input_differences(checkpoint, plans, configuration, dataset_json))
        self.inference_allowed_mirroring_axes = checkpoint.get("inference_allowed_mirroring_axes")
        return checkpoint

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """Return nnU-Net's augmentation, but for the axes of mirroring, which are the trained nnU-Net's."""
        kept = self.inference_allowed_mirroring_axes
        *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = kept
        return (*others, kept)

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        labelled, own = self.labelled_samples(batch), self.own_modalities(batch)
        with torch.no_grad():
            logits, features = self.network(data, skip_adapters=own is None, return_features=True)
        torch.clear_autocast_cache()  # what was cast without gradient would serve the students too
        *earlier, last = subsets = self._deal_subsets(len(data))
        student = partial(self._student_view, data, target, labelled, own)
        teacher = full_resolution(logits), *features
        value = torch.zeros((), device=data.device)
        with self.without_synchronisation():  # each view is differentiated at once: no activations of two are held
            for available in earlier:
                value = value + self.backward(student(available, *teacher) / len(subsets))
        return cast(Tensor, value + student(last, *teacher) / len(subsets))

    def see_incomplete(self, data: Tensor, available: Tensor) -> tuple[Tensor | list[Tensor], list[Tensor]]:
        return cast(tuple[Any, Any], self.network(data, available, return_features=True, all_incomplete=True))
