"""Raw arrays instead of files: which channels they hold, and whether their properties can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities

Names = Sequence[str | int]

_GEOMETRY_OF_READERS = {"SimpleITKIO": "sitk_stuff", "NibabelIO": "nibabel_stuff"}
"""What the properties must hold, besides the spacing, where a segmentation is to be written; readers by their start."""


def as_list(one_or_several: Any) -> list[Any]:
    """Return a list as it is, anything else as a list of one, None as an empty one."""
    if one_or_several is None:
        return []
    return list(one_or_several) if isinstance(one_or_several, list | tuple) else [one_or_several]


def check_properties(properties: Mapping[str, Any], reader: str | None = None) -> None:
    """Check the properties of a raw image.

    Args:
        properties: `spacing`, three numbers in the order of the array's axes, in mm; a 2D image is one slice of any
            thickness.
        reader: the name of nnU-Net's reader that will write the segmentation; None where it is returned.

    Raises:
        UserError: when they have no usable spacing, or lack the geometry that the reader needs to write.
    """
    spacing: Any = properties.get("spacing") if isinstance(properties, Mapping) else None
    try:
        values = [float(value) for value in spacing]
    except (TypeError, ValueError):
        values = []
    if len(values) != 3 or not all(0 < value < math.inf for value in values):
        found = f"found {spacing!r}" if spacing is not None else f"found none in {properties!r}"
        raise UserError(
            "The properties of an image must hold its 'spacing': three positive numbers of mm, in the order of the "
            f"array's axes, {found}. For a 2D image the first is the thickness of the slice, which may be any number. "
            "The reader of the plans returns properties together with the image: `reader.read_images(files)`."
        )
    needed = next((key for start, key in _GEOMETRY_OF_READERS.items() if (reader or "").startswith(start)), None)
    if needed is not None and needed not in properties:
        raise UserError(
            f"To write a segmentation, {reader} needs '{needed}' in the properties, its position and direction; "
            f"found {', '.join(properties)}. Give the properties that {reader}().read_images(files) returns, or write "
            "the returned segmentation yourself."
        )


def scatter(image: np.ndarray, modalities: Modalities, available: Names | None) -> np.ndarray:
    """Put the available modalities of a raw image into their channels, zeros into all others.

    Args:
        image: (C, X, Y, Z), or the channels of those available alone, in the order of `available`.
        modalities: of the C channels.
        available: names or channel numbers; None returns `image` as it is.

    Raises:
        UserError: for an unknown or doubled modality, another number of channels, or all modalities in another order
            than the channels', where it is not known which order the image has.
    """
    if available is None:
        return image
    names = [available] if isinstance(available, str | int) else list(available)
    modalities.subset(names)
    channels = [channel for name in names for channel in modalities.channels_of_modality(name)]
    total, known = modalities.num_channels, ", ".join(modalities.channel_names)
    if len(set(channels)) < len(channels):
        raise UserError(f"A modality is named twice in available = {names}.")
    if image.ndim != 4 or len(image) not in (total, len(channels)):
        raise UserError(
            f"With available = {names} an image has either the shape ({total}, X, Y, Z), all channels "
            f"({known}), or ({len(channels)}, X, Y, Z), those named; this one has {image.shape}."
        )
    if len(channels) == total and channels != sorted(channels):
        raise UserError(
            f"available = {names} names every modality in another order than the channels'. Give them, and the image, "
            f"in the order {known}, or leave 'available' out."
        )
    scattered = np.zeros((total, *image.shape[1:]), dtype=image.dtype)
    scattered[channels] = image[channels] if len(image) == total else image
    return scattered
