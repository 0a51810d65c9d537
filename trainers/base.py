"""What all trainers here share: configuration, network, precision, the training step, the start from another stage."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_unimrseg.config import TrainingConfig, UniMRSegConfig
from nnunetv2_unimrseg.data.preprocessed_cases import check_preprocessed_cases
from nnunetv2_unimrseg.data.preprocessing import enable_incomplete_cases
from nnunetv2_unimrseg.data.segmentation_writer import write_whole_segmentations
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint, transfer_weights
from nnunetv2_unimrseg.nnunet.dataset_json import check_dataset_json
from nnunetv2_unimrseg.nnunet.modalities_in_plans import check_planned_modalities
from nnunetv2_unimrseg.nnunet.paths import dataset_id
from nnunetv2_unimrseg.stages import PREVIOUS_STAGE, SCRATCH, STAGES, TRAINER_OF_SECTION
from nnunetv2_unimrseg.trainers.cascade import check_previous_segmentations, previous_segmentations
from nnunetv2_unimrseg.trainers.cases import TrainingCasesTrainer
from nnunetv2_unimrseg.trainers.learning_rates import (
    LR_FACTOR,
    FlooredPolyLRScheduler,
    scale_gradients_to_parameters,
)
from nnunetv2_unimrseg.trainers.resuming import BEST, newest_checkpoint, restore_state
from nnunetv2_unimrseg.trainers.seeding import RANDOM_SEED, seed_generators
from nnunetv2_unimrseg.utils.files import remove_leftovers, whole_file
from nnunetv2_unimrseg.utils.hardware import cpu_has_native_bfloat16, without_autocast

GRADIENT_NORM_LIMIT = 12
"""As in nnU-Net."""

NamedParameter = tuple[str, torch.nn.Parameter]


def build_segmentation_network(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    channels: tuple[int, int],
    deep_supervision: bool,
    *,
    adapters: bool,
    keep_complete: bool = False,
) -> MissingModalityUNet:
    """Build a network that segments; with these two managers nnU-Net then reads absent files and writes whole ones.

    Args:
        plans_manager, configuration_manager: nnU-Net's; they are changed, nothing else is.
        channels: of the input and of the output.
        deep_supervision, adapters, keep_complete: see `build_network`.
    """
    enable_incomplete_cases(configuration_manager)
    write_whole_segmentations(plans_manager)
    return build_network(
        configuration_manager, *channels, deep_supervision, adapters=adapters, keep_complete=keep_complete
    )


class UniMRSegTrainer(TrainingCasesTrainer):
    """nnU-Net's trainer with the network that understands missing modalities. Subclasses name their `section`."""

    section: ClassVar[str]

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        check_dataset_json(dataset_json, f"dataset.json of {plans.get('dataset_name')} in nnUNet_preprocessed")
        self.settings = getattr(UniMRSegConfig.from_plans(plans, configuration), self.section)
        self.modalities = Modalities.from_dataset_json(dataset_json)
        check_planned_modalities(PlansManager(plans).get_configuration(configuration).configuration, self.modalities)
        _check_surroundings(device)
        _check_learning_rates(self.section, self.settings)
        self.prepare()
        self._continues = bool(plans.get("continue_training"))
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded and self.section in STAGES:
            self.folder_with_segs_from_previous_stage = str(previous_segmentations(*self._cascade()))
        for field in dataclasses.fields(TrainingConfig):
            if hasattr(self, field.name):
                setattr(self, field.name, getattr(self.settings, field.name))
        self.weights_were_loaded = False
        native = self.settings.cpu_precision == "auto" and cpu_has_native_bfloat16()
        self.uses_bfloat16 = self.device.type == "cpu" and (native or self.settings.cpu_precision == "bfloat16")

    def prepare(self) -> None:
        """Check the settings against the modalities, before nnU-Net creates any folder."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> MissingModalityUNet:
        """Build the network without adapters; nnU-Net's commands then read absent files and write whole ones."""
        channels = num_input_channels, num_output_channels
        return build_segmentation_network(
            plans_manager, configuration_manager, channels, enable_deep_supervision, adapters=False
        )

    @property
    def unwrapped_network(self) -> MissingModalityUNet:
        """The network below DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return cast(MissingModalityUNet, network._orig_mod if isinstance(network, OptimizedModule) else network)

    def initialize(self) -> None:
        if self.settings.seed != RANDOM_SEED and not self.was_initialized:
            seed_generators(self.settings.seed)
        super().initialize()
        network = self.unwrapped_network

        def note_loaded_weights(*_: object) -> None:  # no method: copying the network would copy the trainer with it
            self.weights_were_loaded = True

        network.register_load_state_dict_post_hook(note_loaded_weights)  # type: ignore[no-untyped-call]  # torch's
        if self.device.type == "cpu":
            network.to(memory_format=self._memory_format)
            arithmetic = "bfloat16 autocast" if self.uses_bfloat16 else "float32"
            self.print_to_log_file(f"Training steps use {arithmetic} and channels-last memory on this CPU.")

    @property
    def _memory_format(self) -> torch.memory_format:
        three_dimensional = len(self.configuration_manager.patch_size) == 3
        return torch.channels_last_3d if three_dimensional else torch.channels_last

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, FlooredPolyLRScheduler]:
        """Return nnU-Net's SGD for the parameters that learn, and a decay that may end above zero."""
        optimizer = torch.optim.SGD(
            self.parameter_groups(), self.initial_lr, weight_decay=self.weight_decay, momentum=0.99, nesterov=True
        )
        return optimizer, FlooredPolyLRScheduler(optimizer, self.initial_lr, self.settings.final_lr, self.num_epochs)

    def learning_parameters(self, prefix: str = "") -> tuple[list[NamedParameter], list[NamedParameter]]:
        """Return the parameters that learn, with their names: those that begin with `prefix`, and the others."""
        named = [(name, one) for name, one in self.unwrapped_network.named_parameters() if one.requires_grad]
        return (
            [(name, one) for name, one in named if name.startswith(prefix)],
            [(name, one) for name, one in named if not name.startswith(prefix)],
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return `learning_parameters` in the optimizer's groups, each with the factor of its learning rate."""
        return [{"params": self.learning_parameters()[0], LR_FACTOR: 1.0}]

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint as nnU-Net does; it replaces the one before it only when it is whole.

        Raises:
            UserError: when it cannot be written.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        try:
            with whole_file(filename, failures=(RuntimeError,)) as temporary:
                super().save_checkpoint(str(temporary))
        except UserError as error:
            raise UserError(
                f"{error} Once it can be written, the same command (nnUNetv2_train: with --c) goes on from the last "
                "checkpoint."
            ) from error

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load a checkpoint as nnU-Net does; a continued training (--c) takes the newest whole one of the fold.

        Raises:
            UserError: when the file cannot be read, or none to go on from is whole.
        """
        checkpoint = filename_or_checkpoint
        best_is_lost = False
        if not isinstance(checkpoint, Mapping):
            path = Path(checkpoint)
            if self._continues and path.parent == Path(self.output_folder):
                newest = newest_checkpoint(path.parent)
                checkpoint, best_is_lost = newest.content, BEST in newest.damaged
                self.print_to_log_file(str(newest))
            else:
                checkpoint = read_checkpoint(path)
        self._continues = False
        if not self.was_initialized:
            self.initialize()
        restore_state(self, checkpoint)
        if best_is_lost:
            self._best_ema = None  # the next epoch's takes its place

    def on_train_start(self) -> None:
        self._continues = False  # what is loaded after this is meant (--val_best)
        if self.local_rank == 0:
            remove_leftovers(Path(self.output_folder))
        if self.is_cascaded and self.section in STAGES:
            cases = itertools.chain.from_iterable(self.do_split())
            check_previous_segmentations(Path(self.folder_with_segs_from_previous_stage), cases, *self._cascade())
        preprocessed = Path(self.preprocessed_dataset_folder)
        if self.local_rank == 0 and preprocessed.is_dir():
            dataset_class = infer_dataset_class(str(preprocessed))
            check_preprocessed_cases(preprocessed, dataset_class, self.label_manager, self.modalities)
        if not self.weights_were_loaded:
            initial = self.initial_checkpoint()
            if initial is not None:
                if not self.was_initialized:
                    self.initialize()
                self.take_initial_weights(initial)
        super().on_train_start()

    def on_epoch_start(self) -> None:
        """As nnU-Net's; a seeded epoch draws the same whatever was drawn before it."""
        super().on_epoch_start()
        self.count_steps_from(self.current_epoch * self.num_iterations_per_epoch)
        if self.settings.seed != RANDOM_SEED:
            seed_generators(self.settings.seed, self.current_epoch + 1, self.local_rank)
            self.forget_earlier_epochs()

    def forget_earlier_epochs(self) -> None:
        """Drop what earlier epochs left and no checkpoint holds."""

    def take_initial_weights(self, path: Path) -> dict[str, Any]:
        """Copy the weights of the checkpoint `path` into the network; return what the checkpoint holds."""
        return transfer_weights(
            self.unwrapped_network,
            path,
            self.configuration_manager.configuration,
            self.print_to_log_file,
            getattr(self.settings, "stage1_decoder", True),
        )

    def _cascade(self) -> tuple[str, str, str, str]:
        """Return the names of dataset and plans, and of the first and the second configuration."""
        previous = self.configuration_manager.previous_stage_name
        return self.plans_manager.dataset_name, self.plans_manager.plans_name, previous, self.configuration_name

    def initial_checkpoint(self) -> Path | None:
        """Return the checkpoint whose weights a new training starts from; None for a random start.

        Raises:
            UserError: when the stage before this one has not finished, or `start_from` names no file.
        """
        start_from = getattr(self.settings, "start_from", "")
        if start_from == SCRATCH:
            return None
        if start_from:
            path = Path(start_from.replace("{fold}", str(self.fold)))
            if not path.is_file():
                otherwise = ", or unset it to start from the stage before" if self.section in PREVIOUS_STAGE else ""
                raise UserError(
                    f"{self.section}.start_from names {path}, which does not exist. Correct it with "
                    f"`unimrseg configure`{otherwise}."
                )
            return path
        if self.section not in PREVIOUS_STAGE:
            return None
        return self._stage_checkpoint(PREVIOUS_STAGE[self.section])

    def _stage_checkpoint(self, stage: str) -> Path:
        trainer = TRAINER_OF_SECTION[stage]
        plans, configuration = self.plans_manager.plans_name, self.configuration_name
        folder = Path(self.output_folder_base).parent / f"{trainer}__{plans}__{configuration}" / f"fold_{self.fold}"
        path = folder / "checkpoint_final.pth"
        if not path.is_file():
            dataset = dataset_id(self.plans_manager.dataset_name)
            device = "" if self.device.type == "cuda" else f" -device {self.device.type}"
            raise UserError(
                f"{self.__class__.__name__} starts from {stage}, which has not finished for this dataset, plans, "
                f"configuration and fold: there is no checkpoint_final.pth in {folder}. Train it first:\n"
                f"  nnUNetv2_train {dataset} {configuration} {self.fold} -tr {trainer} -p {plans}{device}\n"
                f"or name another checkpoint to start from:\n"
                f"  unimrseg configure -d {dataset} -c {configuration} -p {plans} "
                f"--set {self.section}.start_from=PATH"
            )
        return path

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of a training step: float16 on CUDA as in nnU-Net, bfloat16 on CPUs that have it."""
        if self.device.type == "cuda":
            return torch.autocast("cuda")
        return torch.autocast("cpu", torch.bfloat16) if self.uses_bfloat16 else nullcontext()

    def compute_loss(self, data: Tensor, target: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the loss of one training step (a scalar); runs inside `autocast`.

        Parts of it may have been differentiated already, by `backward`, and have no gradient any more.

        Args:
            data: `(B, C, X, Y[, Z])` on the device, normalised and augmented; NaN channels are missing.
            target: the labels, a list of resolutions under deep supervision.
            batch: nnU-Net's batch, with `keys` (case of each sample).
        """
        raise NotImplementedError

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [scale.to(self.device, non_blocking=True) for scale in target]
        else:
            target = target.to(self.device, non_blocking=True)
        if self.device.type == "cpu":
            data = data.contiguous(memory_format=self._memory_format)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.compute_loss(data, target, batch)
        self._step(loss)
        return {"loss": loss.detach().float().cpu().numpy()}

    def _step(self, loss: Tensor) -> None:
        self.backward(loss)
        if self.grad_scaler is None:
            self._limit_gradients()
            self.optimizer.step()
            return
        self.grad_scaler.unscale_(self.optimizer)
        self._limit_gradients()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _limit_gradients(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM_LIMIT)
        scale_gradients_to_parameters(self.optimizer)

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradients of a part of the loss, which frees its activations; return its value."""
        with without_autocast(self.device):
            (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        return loss.detach()


def _check_learning_rates(section: str, settings: TrainingConfig) -> None:
    if settings.final_lr and settings.final_lr >= settings.initial_lr:
        raise UserError(
            f"{section}.final_lr = {settings.final_lr} must be lower than {section}.initial_lr = "
            f"{settings.initial_lr}, from which the learning rate decays. Change one with `unimrseg configure`."
        )


def _check_surroundings(device: torch.device) -> None:
    if not nnUNet_results.is_set():
        raise UserError(
            "nnUNet_results is not set, so there is no place for the model. Set it to a folder: "
            "export nnUNet_results=/path/to/nnUNet_results"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("Training was asked for on 'cuda', and torch finds no CUDA device. Add: -device cpu")
