"""Resamples images from nnU-Net's preprocessed grid back to the original one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_unimrseg.nnunet.types import ImageProperties


def to_original_grid(
    image: np.ndarray,
    properties: ImageProperties,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    outside: Sequence[float | None],
) -> np.ndarray:
    """Revert resampling, crop and transposition of a preprocessed image.

    The plans' function for images (`resampling_fn_data`) resamples, so that little sharpness is lost there and back.

    Args:
        image: (K, X, Y, Z), any K channels, on the preprocessed grid.
        properties: as preprocessing returned them.
        plans_manager: of the model.
        configuration_manager: of the model.
        outside: the value of each channel outside the crop; None for the channel's lowest value.

    Returns:
        (K, ...) float32, the spatial axes as the reader's arrays have them.
    """
    shape = properties["shape_after_cropping_and_before_resampling"]
    original_spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    spacing = list(configuration_manager.spacing)
    if len(spacing) < len(shape):
        spacing = [original_spacing[0], *spacing]
    image = np.asarray(image, dtype=np.float32)
    cropped = np.asarray(configuration_manager.resampling_fn_data(image, shape, spacing, original_spacing))
    box = tuple(slice(*extent) for extent in properties["bbox_used_for_cropping"])
    whole = np.empty((len(image), *properties["shape_before_cropping"]), dtype=np.float32)
    for channel, inside, value in zip(whole, cropped, outside, strict=True):
        channel[...] = inside.min() if value is None else value
        channel[box] = inside
    axes = [0, *(axis + 1 for axis in plans_manager.transpose_backward)]
    return np.transpose(whole, axes)


def crop_box(properties: ImageProperties, plans_manager: PlansManager) -> tuple[slice, ...]:
    """Return the part of the original grid that preprocessing kept."""
    box = properties["bbox_used_for_cropping"]
    return tuple(slice(*box[axis]) for axis in plans_manager.transpose_backward)
