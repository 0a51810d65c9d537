"""The content of nnU-Net's files and dictionaries, as far as this package reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict


class SitkGeometry(TypedDict):
    """Where an image lies in space, as SimpleITK says: axes in the order x, y, z; millimetres."""

    spacing: Sequence[float]
    origin: Sequence[float]
    direction: Sequence[float]


class ImageProperties(TypedDict, total=False):
    """What nnU-Net's readers and preprocessing say of an image; its axes are those of the array."""

    spacing: Sequence[float]
    sitk_stuff: SitkGeometry
    nibabel_stuff: dict[str, Any]
    shape_before_cropping: Sequence[int]
    bbox_used_for_cropping: Sequence[Sequence[int]]
    shape_after_cropping_and_before_resampling: Sequence[int]
    class_locations: dict[int | tuple[int, ...], Any]
    """Sampled voxels of each label or region, of training cases only."""
    available_modalities: list[bool]
    """Added by UniMRSegPreprocessor, a bool each modality."""


class DatasetJson(TypedDict, total=False):
    """The content of dataset.json."""

    channel_names: dict[str, str]
    modality: dict[str, str]
    """In old files, in place of `channel_names`."""
    labels: dict[str, int | list[int]]
    regions_class_order: list[int]
    numTraining: int
    file_ending: str
    dataset: dict[str, dict[str, Any]]
    overwrite_image_reader_writer: str
    unimrseg: dict[str, Any]
    """This package's: `modalities` and `patient`."""
    name: str
    description: str


class Configuration(TypedDict, total=False):
    """A configuration in the plans; what `inherits_from` names holds the keys that lack."""

    inherits_from: str
    data_identifier: str
    preprocessor_name: str
    batch_size: int
    patch_size: list[int]
    spacing: list[float]
    median_image_size_in_voxels: list[float]
    normalization_schemes: list[str]
    unimrseg_modalities: dict[str, list[int]]
    use_mask_for_norm: list[bool]
    architecture: dict[str, Any]
    previous_stage: str
    next_stage: str


class Plans(TypedDict, total=False):
    """The content of a plans file."""

    dataset_name: str
    plans_name: str
    image_reader_writer: str
    transpose_forward: list[int]
    transpose_backward: list[int]
    configurations: dict[str, Configuration]
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]
    label_manager: str
    unimrseg: dict[str, Any]
