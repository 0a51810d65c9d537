"""Which cases a trainer sees: the fold's split, and what is done with cases that lack a label or modalities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_unimrseg.data.case_table import TrainingCase, count_cases, read_case_table
from nnunetv2_unimrseg.data.splits import draw_splits, join_unlabelled, patient_name, patient_pattern
from nnunetv2_unimrseg.errors import UserError, counted, listed
from nnunetv2_unimrseg.method.augmentation import KeepMissingTransform
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.trainers.batches import MixedDataLoader, StepOrder, stock_dataloaders, unlabelled_samples
from nnunetv2_unimrseg.trainers.distributed import DistributedTrainer
from nnunetv2_unimrseg.utils.files import write_text
from nnunetv2_unimrseg.utils.processes import children_ignore_interrupts

MOST_NAMED_CASES = 10


class TrainingCasesTrainer(DistributedTrainer):
    """nnU-Net's trainer for datasets whose cases may lack a label or modalities, as the table of cases says.

    By default unlabelled cases are drawn like all others; a trainer that uses labels says how many it takes.
    """

    modalities: Modalities
    dataset_class: Any
    dataloader_train: Any

    @cached_property
    def case_table(self) -> dict[str, TrainingCase]:
        """What each training case has; a case that is not in it is complete and labelled."""
        folder = self.preprocessed_dataset_folder_base
        return {} if folder is None else read_case_table(Path(folder))

    @cached_property
    def unlabelled_cases(self) -> frozenset[str]:
        """The names of the cases without a label."""
        return frozenset(name for name, case in self.case_table.items() if not case.labelled)

    @property
    def trains_with_unlabelled(self) -> bool:
        """Whether unlabelled cases are of any use to this trainer; a cascade has no first segmentation of them."""
        return not self.is_cascaded

    @property
    def unlabelled_share(self) -> float | None:
        """Share of unlabelled samples in the batches that have them; None where cases are drawn alike."""
        return None

    @property
    def mixed_every(self) -> int:
        """Every so many steps, the batch has unlabelled samples."""
        return 1

    def patient_name(self, case: str) -> str:
        """Return the patient of a case."""
        return patient_name(case, patient_pattern(self.dataset_json))

    def own_modalities(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the modalities of each sample's case, `(B, M)` booleans on the CPU; None where all are complete."""
        cases = [self.case_table.get(str(key)) for key in batch["keys"]]
        own = torch.tensor([[case is None or name in case.available for name in self.modalities] for case in cases])
        return None if own.all() else own

    def labelled_samples(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the `(L,)` indices of the samples that have a label, on the device; None where all have one."""
        keys = [str(key) for key in batch["keys"]]
        labelled = [number for number, key in enumerate(keys) if key not in self.unlabelled_cases]
        if len(labelled) == len(keys):
            return None
        return torch.tensor(labelled, dtype=torch.long).to(self.device, non_blocking=True)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split the labelled cases as nnU-Net does, and add the unlabelled ones to those for training.

        Raises:
            UserError: when splits_final.json names unlabelled cases for validation.
        """
        pattern = patient_pattern(self.dataset_json)
        if not self.unlabelled_cases and pattern is None:
            split: tuple[list[str], list[str]] = super().do_split()
            return split
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        stock: Any = self.dataset_class
        unlabelled = self.unlabelled_cases & set(stock.get_identifiers(self.preprocessed_dataset_folder))

        class LabelledCases(stock):
            @staticmethod
            def get_identifiers(folder: str) -> list[str]:
                return [case for case in stock.get_identifiers(folder) if case not in unlabelled]

        splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and not splits_file.exists():
            labelled = LabelledCases.get_identifiers(self.preprocessed_dataset_folder)
            write_text(splits_file, json.dumps(draw_splits(labelled, pattern), indent=4))
        try:
            self.dataset_class = LabelledCases
            training, validation = super().do_split()
        finally:
            self.dataset_class = stock
        self._check_validation_cases(validation, splits_file)
        if not self.trains_with_unlabelled:
            return [case for case in training if case not in unlabelled], validation
        held_out = [] if self.fold == "all" else validation
        return join_unlabelled(training, held_out, unlabelled, pattern), validation

    def _check_validation_cases(self, validation: Sequence[str], splits_file: Path) -> None:
        unlabelled = sorted(self.unlabelled_cases & set(validation))
        if unlabelled:
            raise UserError(
                f"{splits_file} has {counted(len(unlabelled), 'case')} without a label in the validation of fold "
                f"{self.fold}, which cannot score them:\n{listed(unlabelled, MOST_NAMED_CASES)}\n"
                "Take them out of the file (they then join the training of every fold), or remove the file, and it "
                "is drawn anew over the labelled cases."
            )

    def get_tr_and_val_datasets(self) -> tuple[nnUNetBaseDataset, nnUNetBaseDataset]:
        """Return nnU-Net's datasets, and say in the log what the cases for training have."""
        training, validation = super().get_tr_and_val_datasets()
        complete = TrainingCase(tuple(self.modalities), labelled=True)
        cases = [self.case_table.get(name, complete) for name in training.identifiers]
        counts = count_cases(cases, len(self.modalities))
        self.num_unlabelled_cases = counts["cases"] - counts["labelled"]
        self.print_to_log_file(
            f"Fold {self.fold} trains with {counted(counts['labelled'], 'labelled case')} and "
            f"{self.num_unlabelled_cases} unlabelled; {counts['incomplete']} of them lack a modality."
        )
        return training, validation

    @staticmethod
    def get_training_transforms(
        patch_size: np.ndarray | tuple[int],
        rotation_for_DA: Any,
        deep_supervision_scales: list[Any] | tuple[Any, ...] | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: tuple[int, ...] | list[int] | None = None,
        regions: list[Any] | None = None,
        ignore_label: int | None = None,
    ) -> BasicTransform:
        """Return nnU-Net's augmentation, through which missing modalities stay missing."""
        return KeepMissingTransform(nnUNetTrainer.get_training_transforms(**locals()))

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Start nnU-Net's data loaders, whose processes ignore Ctrl-C and end with this one."""
        share = self.unlabelled_share
        with children_ignore_interrupts():
            if not share or not self.unlabelled_cases:
                loaders: tuple[Any, Any] = super().get_dataloaders()
                return loaders
            return self._mixed_dataloaders(unlabelled_samples(share, self.batch_size))

    def _mixed_dataloaders(self, num_unlabelled: int) -> tuple[Any, Any]:
        loader = partial(
            MixedDataLoader,
            unlabelled=self.unlabelled_cases,
            num_unlabelled=num_unlabelled,
            mixed_every=self.mixed_every,
        )
        training, validation = stock_dataloaders(self, loader)
        if self.num_unlabelled_cases == 0:
            return training, validation
        self.print_to_log_file(
            f"In one of {counted(self.mixed_every, 'step')}, {num_unlabelled} of {self.batch_size} samples are of "
            "unlabelled cases."
            if num_unlabelled
            else "Unlabelled cases are not used: a batch of one sample has no place for them."
        )
        if num_unlabelled and self.mixed_every > 1:
            training = StepOrder(training, self.unlabelled_cases, self.mixed_every)
        return training, validation

    def count_steps_from(self, steps: int) -> None:
        """Take `steps` as the number of training steps done, also where the training was interrupted before."""
        self.steps = steps
        if isinstance(self.dataloader_train, StepOrder):
            self.dataloader_train.count_from(steps)

    def on_train_end(self) -> None:
        if isinstance(self.dataloader_train, StepOrder):
            self.dataloader_train = self.dataloader_train.batches  # which nnU-Net shuts down
        super().on_train_end()
