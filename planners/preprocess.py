"""Preprocessing the training cases of a dataset, as nnU-Net does, but with cases that lack modalities or the label."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.data.preprocessing import TrainingCasePreprocessor, enable_incomplete_cases
from nnunetv2_unimrseg.data.training_cases import RawDataset
from nnunetv2_unimrseg.nnunet.paths import nnunet_folder, read_plans
from nnunetv2_unimrseg.utils.files import read_json
from nnunetv2_unimrseg.utils.processes import map_in_processes


def preprocess_dataset(
    dataset: str, plans_name: str, configurations: Sequence[str], num_processes: Sequence[int], raw: RawDataset
) -> None:
    """Write the preprocessed cases of configurations, and copy the labels into `gt_segmentations`.

    A modality that a case lacks is all NaN. The segmentation of an unlabelled case is 0 throughout.

    Args:
        dataset: its name.
        plans_name: of the plans.
        configurations: their folders are made anew.
        num_processes: of each configuration.
        raw: the dataset, checked.

    Raises:
        UserError: when the plans ask for a preprocessor of their own, a case cannot be preprocessed, or a process was
            killed.
        OSError: when a folder or a file cannot be written.
    """
    base = nnunet_folder("nnUNet_preprocessed") / dataset
    plans_manager, dataset_json = PlansManager(read_plans(dataset, plans_name)), read_json(base / "dataset.json")
    preprocessor = TrainingCasePreprocessor(verbose=False)
    for name, processes in zip(configurations, num_processes, strict=True):
        configuration = plans_manager.get_configuration(name)
        enable_incomplete_cases(configuration)
        configuration.folder_was_checked = True
        folder = base / configuration.data_identifier
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        arguments = [
            (str(folder / case.name), list(case.images), case.label, plans_manager, configuration, dataset_json)
            for case in raw.cases
        ]
        map_in_processes(
            preprocessor.run_case_save, arguments, processes, "Use fewer processes (-np).", f"Preprocessing {name}"
        )
    _copy_labels(raw, base / "gt_segmentations")


def _copy_labels(raw: RawDataset, folder: Path) -> None:
    """Copy the labels that are newer than their copies, so that a validation needs no raw data."""
    folder.mkdir(exist_ok=True)
    for case in raw.cases:
        copy = folder / f"{case.name}{raw.file_ending}"
        if case.label is not None and not (copy.exists() and copy.stat().st_mtime >= Path(case.label).stat().st_mtime):
            shutil.copy2(case.label, copy)
