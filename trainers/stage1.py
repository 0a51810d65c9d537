"""Stage 1: multi-granular modality reconstruction (paper section 3.1)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import time
from typing import Any, ClassVar, cast

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor
from torch import distributed as dist

from nnunetv2_unimrseg.data.preprocessing import enable_incomplete_cases
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.reconstructor import Reconstructor
from nnunetv2_unimrseg.method.augmentation import draw_corruption
from nnunetv2_unimrseg.method.losses import reconstruction_loss, ssim
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.method.networks.unet import (
    MissingModalityUNet,
    expand_to_channels,
    present_modalities,
    zero_missing,
)
from nnunetv2_unimrseg.method.reconstruction_metrics import missing_patterns, reconstruction_scores, summarise
from nnunetv2_unimrseg.trainers.base import UniMRSegTrainer
from nnunetv2_unimrseg.trainers.progress import ProgressLogger
from nnunetv2_unimrseg.trainers.reconstruction import write_reconstruction_figure
from nnunetv2_unimrseg.trainers.segmentation import VALIDATION_SEED, mark_missing
from nnunetv2_unimrseg.utils.files import write_json


class UniMRSegStage1Trainer(UniMRSegTrainer):
    """Reconstructs all modalities from a corrupted patch; labels are not used."""

    section: ClassVar[str] = "stage1"
    _best_ema: float | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.logger.local_logger = ProgressLogger(
            {"val_l1": "validation L1 (normalised intensity)", "val_ssim": "validation SSIM"},
            "reconstruction of corrupted validation patches",
            keeps_dice=False,
        )

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> MissingModalityUNet:
        """Build the network with one output channel per image channel, at full resolution only.

        Raises:
            UserError: when deep supervision is off, which is how prediction of a segmentation asks for the network.
        """
        if not enable_deep_supervision:
            raise UserError(
                "This is a stage-1 model: it reconstructs images and cannot segment; train stages 2 and 3 and "
                "predict with -tr UniMRSegStage3Trainer."
            )
        enable_incomplete_cases(configuration_manager)
        channels = len(configuration_manager.normalization_schemes)
        network = build_network(configuration_manager, num_input_channels, channels, False, adapters=False)
        network.decoder.seg_layers[:-1].requires_grad_(False)
        return network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the heads of deep supervision take no part."""

    def _get_deep_supervision_scales(self) -> None:
        return None

    def _build_loss(self) -> partial[Tensor]:
        return partial(
            reconstruction_loss,
            l1_weight=self.settings.l1_weight,
            ssim_weight=self.settings.ssim_weight,
            window=self.settings.ssim_window,
        )

    def _reconstruct(self, data: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Corrupt and reconstruct: input shown, reconstruction, target (each `(B, C, ...)`), known `(B, C)`."""
        channels, count = self.modalities.channels, self.modalities.num_channels
        target, known = zero_missing(data[:, :count], channels)
        corruption = draw_corruption(target.shape, self.settings, generator, channels)
        corrupted, available = corruption.apply(data[:, :count])
        if count > len(channels):
            available = available[:, [first for first, *_ in channels]]
        prediction = self.network(torch.cat((corrupted, data[:, count:]), 1), available)
        return corrupted, prediction, target, expand_to_channels(known, channels)

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        _, prediction, complete, known = self._reconstruct(data)
        return cast(Tensor, self.loss(prediction, complete, known=known))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validation_draws = torch.Generator().manual_seed(VALIDATION_SEED + self.local_rank)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        data = batch["data"].to(self.device, non_blocking=True)
        with self.autocast():
            corrupted, prediction, target, known = self._reconstruct(data, self._validation_draws)
            loss = self.loss(prediction, target, known=known)
        prediction = prediction.float()
        absolute = (prediction - target).abs().flatten(2).mean(2)[known].mean()
        similarity = ssim(prediction, target, self.settings.ssim_window)[known].mean()
        self._shown = corrupted[0], prediction[0], target[0]
        return {"loss": loss.float().cpu().numpy(), "l1": absolute.cpu().numpy(), "ssim": similarity.cpu().numpy()}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        outputs = collate_outputs(val_outputs)
        means = np.array([np.mean(outputs[name]) for name in ("loss", "l1", "ssim")])
        means = np.mean(self.from_all_ranks(means), axis=0)
        for key, value in zip(("val_losses", "val_l1", "val_ssim"), means.tolist(), strict=True):
            self.logger.log(key, value, self.current_epoch)

    def on_epoch_end(self) -> None:
        """As nnU-Net's, for reconstruction: no Dice, and the best checkpoint follows the validation loss."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        last = {key: self.logger.get_value(key, step=-1) for key in self.logger.local_logger.my_fantastic_logging}
        self.print_to_log_file("train_loss", np.round(last["train_losses"], decimals=4))
        self.print_to_log_file("val_loss", np.round(last["val_losses"], decimals=4))
        self.print_to_log_file(
            f"Reconstruction of corrupted validation patches: L1 {last['val_l1']:.4f}, SSIM {last['val_ssim']:.4f}"
        )
        self.print_to_log_file(f"Epoch time: {last['epoch_end_timestamps'] - last['epoch_start_timestamps']:.2f} s")
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch != self.num_epochs - 1:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        smoothed = self._smoothed_loss()
        if self._best_ema is None or smoothed < self._best_ema:
            self._best_ema = smoothed
            self.print_to_log_file(f"New best validation loss (moving average): {smoothed:.4f}")
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)
            title = f"stage 1, epoch {self.current_epoch}: one validation patch"
            write_reconstruction_figure(
                Path(self.output_folder) / "reconstruction.png", *self._shown, self.modalities.channel_names, title
            )
        self.current_epoch += 1

    def _smoothed_loss(self) -> float:
        smoothed, *later = self.logger.get_value("val_losses", step=None)
        for value in later:
            smoothed = 0.9 * smoothed + 0.1 * value
        return float(smoothed)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Reconstruct the validation cases under each missing pattern and write validation/summary.json.

        Modalities are taken out after preprocessing. A case that lacks some is scored for what it has. Nothing is
        segmented, so `save_probabilities` has no effect.
        """
        self.network.eval()
        predictor = Reconstructor(use_mirroring=False, device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            self.network,
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            self.__class__.__name__,
            self.inference_allowed_mirroring_axes,
        )
        _, keys = self.do_split()
        ranks = dist.get_world_size() if self.is_ddp else 1
        cases = []
        own_keys = keys[self.local_rank :: ranks]
        for number, key in enumerate(own_keys):
            self.print_to_log_file(f"reconstructing {key} ({number + 1} of {len(own_keys)})")
            cases.append(self._score_case(predictor, key))
            if self.is_ddp and number < len(keys) // ranks:
                dist.barrier()  # else the first to end would wait at the next line for longer than NCCL's limit
        cases = [case for part in self.from_all_ranks(cases) for case in part]
        if self.local_rank == 0:
            folder = Path(self.output_folder) / "validation"
            folder.mkdir(exist_ok=True)
            summary = summarise(cases, self.modalities)
            write_json(folder / "summary.json", summary)
            overall = summary["missing_modalities_mean"]
            for metric, value in overall.items():
                self.logger.log_summary(f"final_val/missing_modalities_{metric}", value)
            self.print_to_log_file("Validation complete")
            self.print_to_log_file(
                "Mean over missing modalities: " + ", ".join(f"{name} {value:.4f}" for name, value in overall.items())
            )

    def _score_case(self, predictor: Reconstructor, key: str) -> dict[str, Any]:
        dataset = self.dataset_class(
            self.preprocessed_dataset_folder,
            [key],
            folder_with_segs_from_previous_stage=self.folder_with_segs_from_previous_stage,
        )
        data, _, previous_labels, _ = dataset.load_case(key)
        data = torch.from_numpy(np.array(data[:]))
        images = data.clone()
        if self.is_cascaded:
            from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

            labels = convert_labelmap_to_one_hot(previous_labels[:], self.label_manager.foreground_labels, np.float32)
            data = torch.cat((data, torch.from_numpy(labels)))
        (own,) = present_modalities(images[None], self.modalities.channels).tolist()
        metrics = {}
        for pattern in missing_patterns(len(self.modalities)):
            if list(pattern) == own or any(wanted and not has for wanted, has in zip(pattern, own, strict=True)):
                continue  # nothing is left to compare with, or the case lacks what the pattern shows
            incomplete = mark_missing(data[None], torch.tensor([pattern]), self.modalities.channels)[0]
            reconstruction = predictor.predict_sliding_window_return_logits(incomplete).cpu()
            scores = reconstruction_scores(reconstruction, images, self.settings.ssim_window)
            named = zip(self.modalities.channel_names, scores, self.modalities.expand(own), strict=True)
            metrics[self.modalities.describe(pattern)] = {name: score for name, score, has in named if has}
        return {"case": key, "metrics": metrics}
