"""A trained stage-1 model, loaded to reconstruct."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_unimrseg.config import PLANS_KEY, UniMRSegConfig
from nnunetv2_unimrseg.data.preprocessing import enable_incomplete_cases, planned_modalities
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.modalities_in_plans import check_planned_modalities
from nnunetv2_unimrseg.nnunet.trained_model import Fold, find_section, trained_checkpoints
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.files import read_json


class Reconstructor(nnUNetPredictor):
    """nnU-Net's sliding window, mirroring and averaging of folds, for a network that returns images.

    `predict_logits_from_preprocessed_data` takes a preprocessed image (C, X, Y, Z), NaN in missing channels, and
    returns all C channels reconstructed, in normalised intensity.
    """

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str | Path,
        use_folds: Sequence[Fold] | Fold | None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        """Load a model trained by stage 1.

        Args:
            model_training_output_dir: the folder that holds `fold_X`.
            use_folds: the folds whose reconstructions are averaged; None for all that have the checkpoint.
            checkpoint_name: the file to load from each fold.

        Raises:
            UserError: when the folder, a fold or its checkpoint is absent, damaged or does not fit the plans beside
                it, when it is not a stage-1 model, and for the second stage of a cascade.
        """
        folder = Path(model_training_output_dir)
        if isinstance(use_folds, str | int):
            use_folds = [use_folds]
        checkpoints = []
        for path, checkpoint in trained_checkpoints(folder, use_folds, checkpoint_name):
            if find_section(checkpoint, path) != "stage1":
                raise UserError(
                    f"{path} is not a stage-1 model, so it cannot reconstruct images; it was trained by "
                    f"{checkpoint.get('trainer_name')}. Train stage 1 with `nnUNetv2_train DATASET CONFIGURATION FOLD "
                    f"-tr {TRAINER_OF_SECTION['stage1']}`, or name its folder if it is trained."
                )
            checkpoints.append(checkpoint)
        plans_manager = PlansManager(read_json(folder / "plans.json"))
        dataset_json = read_dataset_json(folder / "dataset.json")
        configuration = plans_manager.get_configuration(checkpoints[0]["init_args"]["configuration"])
        if configuration.previous_stage_name is not None:
            raise UserError(
                "This model is the second stage of a cascade, which needs a segmentation beside the images. "
                "Reconstruct with a stage-1 model of another configuration, such as 3d_fullres."
            )
        modalities = planned_modalities(configuration, dataset_json)
        check_planned_modalities(configuration.configuration, modalities)
        channels = modalities.num_channels
        enable_incomplete_cases(configuration)
        network = build_network(configuration, channels, channels, False, adapters=False)
        weights = [checkpoint["network_weights"] for checkpoint in checkpoints]
        network.load_state_dict(weights[0])
        self.manual_initialization(
            network,
            plans_manager,
            configuration,
            weights,
            dataset_json,
            str(checkpoints[0]["trainer_name"]),
            checkpoints[0].get("inference_allowed_mirroring_axes"),
        )

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[tuple[slice, ...]], do_on_device: bool = True
    ) -> Tensor:
        """Average overlapping windows as nnU-Net does, but in single precision.

        nnU-Net sums in half precision. At an image's edges, where only the low weights of the windows' margins count,
        that is wrong by several percent. It rarely changes which logit is largest, but it is visible in an image.
        """
        device = self.device if do_on_device else torch.device("cpu")
        size = tuple(self.configuration_manager.patch_size)
        weight = torch.ones(size, device=device)
        if self.use_gaussian:
            weight = compute_gaussian(
                size, sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float, device=device
            )
        data = data.to(device)
        total = torch.zeros((self.modalities.num_channels, *data.shape[1:]), device=device)
        weights = torch.zeros(data.shape[1:], device=device)
        for window in slicers:
            made = self._internal_maybe_mirror_and_predict(data[window][None].to(self.device))[0]
            total[window] += made.to(device, torch.float) * weight
            weights[window[1:]] += weight
        return total / weights

    @property
    def modalities(self) -> Modalities:
        """The modalities that the model was trained with, in channel order."""
        return Modalities.from_dataset_json(self.dataset_json)

    @property
    def ssim_window(self) -> int:
        """Edge of SSIM's window in voxels, as in training."""
        return UniMRSegConfig.from_dict(self.configuration_manager.configuration.get(PLANS_KEY, {})).stage1.ssim_window
