"""Preprocessing of cases with absent files, for nnU-Net's own prediction code and for training.

A modality is *missing* when its file is absent or holds one constant intensity. In the preprocessed image a missing
channel is all NaN, and NaN is found nowhere else: that is how the network knows. Nothing of a missing modality reaches
the other channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_unimrseg.data.normalised import Normalisation, normalisation_problems, size_problem
from nnunetv2_unimrseg.data.reading import case_name, check_intensities, read_usable_case
from nnunetv2_unimrseg.data.scan_folder import scan_folder, split_name
from nnunetv2_unimrseg.errors import UserError, listed
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.modalities_in_plans import check_planned_modalities
from nnunetv2_unimrseg.nnunet.types import DatasetJson, ImageProperties

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager


class UniMRSegPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessor, for cases that lack some of their files.

    Missing channels are zero for the crop and the normalisation mask (both are the union over channels), whatever
    their normaliser, and NaN afterwards.
    """

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: DatasetJson | str,
    ) -> tuple[np.ndarray, np.ndarray, ImageProperties]:
        """Read any non-empty subset of a case's files and preprocess them.

        Files that give all channels are positional as in nnU-Net; otherwise the `_XXXX` suffix of their names says
        which channel each is.

        Returns:
            The image (C, X, Y, Z), float32, NaN where missing; the segmentation (1, X, Y, Z); the properties of the
            first available file, with `available_modalities` (a bool each) added.

        Raises:
            UserError: listing all that is wrong with the case: no file, a name without channel suffix, an unknown or
                doubled channel, an unreadable or truncated file, files that differ in shape, spacing or position, NaN
                or Inf, no available modality; what lies beside the first file, looks like a scan of the case and
                cannot be used (see `UniMRSegConfigurationManager.folder_was_checked`).
        """
        dataset_json = _loaded(dataset_json)
        modalities = planned_modalities(configuration_manager, dataset_json)
        reader = plans_manager.image_reader_writer_class()
        name = case_name(image_files, dataset_json["file_ending"])
        was_checked = getattr(configuration_manager, "folder_was_checked", False)
        unnoticed = [] if was_checked else _unnoticed_scans(image_files, dataset_json["file_ending"])
        read = read_usable_case(name, image_files, reader, modalities, dataset_json["file_ending"], unnoticed)
        data, properties = read.image, read.properties
        seg = None if seg_file is None else reader.read_seg(seg_file)[0]
        try:
            data, seg, properties = self.run_case_npy(
                data, seg, properties, plans_manager, configuration_manager, dataset_json
            )
        except UserError as error:
            raise UserError(f"Case '{name}' ({', '.join(map(str, image_files))}): {error}") from error
        available = properties["available_modalities"]
        if not (all(available) or was_checked):
            missing = modalities.describe([not present for present in available])
            print(f"{name}: {modalities.describe(available)} available, {missing} missing")
        return data, seg, properties

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: ImageProperties,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: DatasetJson | str,
    ) -> tuple[np.ndarray, np.ndarray, ImageProperties]:
        """Preprocess a raw image (C, X, Y, Z), modalities of one constant intensity a channel being missing.

        The caller's array is not changed. See `run_case` for what is returned.

        Raises:
            UserError: for a wrong number of channels, NaN or Inf in a channel, no available modality, a channel that
                is not finite or constant after normalisation, or a spacing that cannot be right.
        """
        dataset_json = _loaded(dataset_json)
        modalities = planned_modalities(configuration_manager, dataset_json)
        if data.ndim != 4 or len(data) != modalities.num_channels:
            raise UserError(
                f"An image must have the shape ({modalities.num_channels}, X, Y, Z), its channels being "
                f"{', '.join(modalities.channel_names)}; this one has {data.shape}."
            )
        available, problems = check_intensities(data, modalities)
        problems = problems or preprocessing_problems(
            data, properties, available, modalities, plans_manager, configuration_manager
        )
        if problems:
            raise UserError(f"The image cannot be used:\n{listed(problems)}")
        missing = [not present for present in modalities.expand(available)]
        if data[missing].any():
            data = data.astype(np.float32)
            data[missing] = 0
        data, seg, properties = super().run_case_npy(
            data, seg, properties, plans_manager, configuration_manager, dataset_json
        )
        data = data.astype(np.float32, copy=False)
        data[missing] = np.nan
        properties["available_modalities"] = list(available)
        return data, seg, properties


class TrainingCasePreprocessor(UniMRSegPreprocessor):
    """Preprocess training cases, some of which may lack modalities or the label, into nnU-Net's own files."""

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: DatasetJson | str,
    ) -> tuple[np.ndarray, np.ndarray, ImageProperties]:
        """Preprocess as `UniMRSegPreprocessor` does, with the properties that nnU-Net's data loader expects.

        An unlabelled case (`seg_file` None) gets a segmentation of zeros and no location of any class, so that the
        loader takes its patches anywhere.
        """
        data, seg, properties = super().run_case(
            image_files, seg_file, plans_manager, configuration_manager, dataset_json
        )
        del properties["available_modalities"]  # it is in the case table; nnU-Net's files have no such entry
        if seg_file is None:
            seg = np.zeros_like(seg)
            label_manager = plans_manager.get_label_manager(_loaded(dataset_json))
            properties["class_locations"] = no_class_locations(label_manager)
        return data, seg, properties


def no_class_locations(label_manager: LabelManager) -> dict[int | tuple[int, ...], list[Any]]:
    """Return an empty list for each label or region of which nnU-Net's preprocessing samples locations."""
    sampled = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    keys = [tuple(key) if isinstance(key, list | tuple) else int(key) for key in sampled]
    if label_manager.has_ignore_label:
        keys.append((-1, *label_manager.all_labels))  # all that is annotated
    return {key: [] for key in keys}


def _loaded(dataset_json: DatasetJson | str) -> DatasetJson:
    return load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json


def preprocessing_problems(
    image: np.ndarray,
    properties: ImageProperties,
    available: Sequence[bool],
    modalities: Modalities,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    files: Mapping[int, str] | None = None,
) -> list[str]:
    """Say why a raw image `(C, X, Y, Z)` cannot be preprocessed; the list is empty where it can.

    Args:
        image: as read.
        properties: the reader's.
        available: the modalities that are available.
        modalities: of the C channels.
        plans_manager: the plans.
        configuration_manager: of the configuration.
        files: the file of each channel, for the message.
    """
    size = size_problem(image, modalities.expand(available), properties, plans_manager, configuration_manager)
    normalisation = Normalisation.of_plans(plans_manager, configuration_manager)
    unusable = normalisation_problems(image, available, modalities, normalisation, files)
    return [*([size] if size else []), *unusable]


class UniMRSegConfigurationManager(ConfigurationManager):
    """A configuration whose cases may lack files; see `enable_incomplete_cases`."""

    folder_was_checked = False
    """Whether the code that listed the cases' files has looked for scans that cannot be used, or was told to leave some
    out; nnU-Net's own commands do neither."""

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        """The preprocessor that nnU-Net's prediction code uses, in its worker processes too."""
        return UniMRSegPreprocessor


def _unnoticed_scans(files: Sequence[str], file_ending: str) -> list[str]:
    """Return a problem for each unusable scan of a case, which nnU-Net passes over when it lists a folder."""
    split = split_name(files[0], file_ending) if files else None
    if split is None:
        return []
    return [str(scan) for scan in scan_folder(Path(files[0]).parent, file_ending, case=split[0]).unusable]


def enable_incomplete_cases(configuration_manager: ConfigurationManager) -> None:
    """Make all code that preprocesses with this very object, nnU-Net's stock commands included, accept absent files.

    Only the class of this one object changes; nnU-Net and every other configuration stay as they are.

    Raises:
        UserError: when the plans ask for a preprocessor of their own, which would silently be left out.
    """
    if configuration_manager.preprocessor_name != DefaultPreprocessor.__name__:
        raise UserError(
            f"The plans ask for the preprocessor '{configuration_manager.preprocessor_name}'; cases with absent files "
            f"can only be read with nnU-Net's '{DefaultPreprocessor.__name__}'. Plan the dataset with that one."
        )
    configuration_manager.__class__ = UniMRSegConfigurationManager


def planned_modalities(configuration_manager: ConfigurationManager, dataset_json: DatasetJson) -> Modalities:
    """Return the modalities of a dataset, after checking that the plans have as many channels, grouped alike.

    Raises:
        UserError: when they do not, or when there is only one modality.
    """
    modalities = Modalities.from_dataset_json(dataset_json)
    planned = len(configuration_manager.normalization_schemes)
    if planned != modalities.num_channels:
        raise UserError(
            f"dataset.json names {modalities.num_channels} channels ({', '.join(modalities.channel_names)}), the plans "
            f"have {planned}. Plan and preprocess the dataset again."
        )
    check_planned_modalities(configuration_manager.configuration, modalities, stock_allowed=True)
    return modalities
