"""Can a raw image be preprocessed? Each channel must be finite and not constant once it is normalised.

A channel that overflows becomes NaN, which the network takes for a missing modality; one that becomes constant is as
good as missing. Neither may pass for a scan. Besides, a wrong spacing must not make the resampled image larger than
this machine's memory.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_unimrseg.data.reading import extreme_values
from nnunetv2_unimrseg.errors import format_size, in_one_line
from nnunetv2_unimrseg.modalities import Modalities

CT, NONE = "CTNormalization", "NoNormalization"

LARGE = 1e10
"""A channel whose values are smaller than this, and two of which differ from zero and from each other, can neither
overflow nor become constant."""

_LOWEST_PADDING = -3e38
"""Values below this are the lowest float32 number, with which some converters pad."""

_BYTES_PER_VALUE = 4
_MOST_TIMES, _MOST_TIMES_IN_ALL = 100, 10_000
"""How many times as many voxels as the planned images a resampled image may have along one axis, and in all."""


@dataclass(frozen=True)
class Normalisation:
    """How each channel is normalised: the part of a configuration and its plans that nnU-Net's normalisation reads.

    Attributes:
        normalization_schemes: nnU-Net's class of each channel.
        use_mask_for_norm: whether each channel is normalised only inside the nonzero mask.
        foreground: the plans' intensity properties by channel number, as text.
        transpose_forward: the plans' order of the axes.
    """

    normalization_schemes: Sequence[str]
    use_mask_for_norm: Sequence[bool]
    foreground: Mapping[str, Mapping[str, float]]
    transpose_forward: Sequence[int] = (0, 1, 2)

    @classmethod
    def of_plans(cls, plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> Normalisation:
        """Return the normalisation that a configuration plans."""
        return cls(
            configuration_manager.normalization_schemes,
            configuration_manager.use_mask_for_norm,
            plans_manager.foreground_intensity_properties_per_channel,
            plans_manager.transpose_forward,
        )

    @classmethod
    def before_planning(cls, channel_names: Sequence[str], *, masked: bool) -> Normalisation:
        """Return the normalisation that nnU-Net will plan for channels of these names, with or without the mask.

        The clip range of CT is not known yet, so CT channels count as not normalised.
        """
        schemes = [get_normalization_scheme(name).__name__ for name in channel_names]
        schemes = [NONE if scheme == CT else scheme for scheme in schemes]
        return cls(schemes, [masked] * len(schemes), {})

    def problem(self, data: np.ndarray, mask: np.ndarray, channel: int) -> str | None:
        """Normalise a channel of a cropped image `(C, X, Y, Z)`, and say what is wrong with the result."""
        alone = Normalisation([self.normalization_schemes[channel]], [self.use_mask_for_norm[channel]], {})
        foreground = {"0": self.foreground.get(str(channel), {})}
        values = data[channel : channel + 1].astype(np.float32)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                found = value_problem(DefaultPreprocessor(verbose=False)._normalize(values, mask, alone, foreground))
            except AssertionError as error:  # RGBTo01Normalization
                return f"they are refused ({in_one_line(error)})"
        return found and f"they become {found}"


def normalisation_problems(
    image: np.ndarray,
    available: Sequence[bool],
    modalities: Modalities,
    normalisation: Normalisation,
    files: Mapping[int, str] | None = None,
    otherwise: str = "leave this modality out",
) -> list[str]:
    """List the channels of available modalities that are not finite, or constant, after normalisation, each in words.

    A channel that is constant before it is none, where its modality has others that are not.

    Args:
        image: `(C, X, Y, Z)` as read.
        available: the modalities that are available.
        modalities: of the C channels.
        normalisation: of the C channels. Only channels that could become useless are normalised, to save time.
        files: the file of each channel, for the message.
        otherwise: what to do with an image that cannot be mended.
    """
    schemes, foreground = normalisation.normalization_schemes, normalisation.foreground
    channels = modalities.expand(available)
    suspicious = [
        channel
        for channel, there in enumerate(channels)
        if there
        and not _is_harmless(image[channel], schemes[channel], foreground.get(str(channel), {}))
        and np.ptp(image[channel]) != 0
    ]
    if not suspicious:
        return []
    data = np.where(np.reshape(channels, (-1, 1, 1, 1)), image, 0)
    data, mask, _ = crop_to_nonzero(data.transpose([0, *(axis + 1 for axis in normalisation.transpose_forward)]))
    problems = []
    for channel in suspicious:
        found, scheme = extreme_values(image[channel]), schemes[channel]
        if problem := normalisation.problem(data, mask, channel):
            file = f"{files[channel]}: " if files and channel in files else ""
            cause = _likely_cause(*found, scheme, foreground.get(str(channel), {}))
            problems.append(
                f"{file}{modalities.channel_names[channel]} (channel {channel}) cannot be used: its values range from "
                f"{found[0]:.6g} to {found[1]:.6g}, and normalised by {scheme} {problem}. {cause}, or {otherwise}."
            )
    return problems


def _is_harmless(channel: np.ndarray, scheme: str, foreground: Mapping[str, float]) -> bool:
    low, high = extreme_values(channel)
    if not -LARGE < low <= high < LARGE or scheme.startswith("RGB"):
        return False
    if scheme == CT and not (low < foreground["percentile_99_5"] and high > foreground["percentile_00_5"]):
        return False
    if low > 0 or high < 0:
        return low != high
    nonzero = channel[channel != 0]
    return bool(nonzero.size and nonzero.min() != nonzero.max())


def value_problem(normalised: np.ndarray) -> str | None:
    """Say what is wrong with the values of a normalised channel, or None."""
    low, high = extreme_values(normalised)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "NaN or infinite"
    return "all the same" if low == high else None


def _likely_cause(low: float, high: float, scheme: str, foreground: Mapping[str, float]) -> str:
    """Say why a channel has most likely become useless, and what to do; more advice follows after a comma."""
    if low < _LOWEST_PADDING:
        return (
            "A converter has most likely padded the image with the lowest float32 number. Replace these voxels by the "
            "image's background value"
        )
    if max(abs(low), abs(high)) >= LARGE:
        return (
            "Values of this size come from a damaged file, a wrong byte order or a wrong scaling factor. Convert the "
            "image again"
        )
    if scheme == CT:
        limits = f"{foreground['percentile_00_5']:g} and {foreground['percentile_99_5']:g}"
        return (
            f"The training images lie between {limits} there. Is it another modality, or not in Hounsfield units? "
            "Give the right file"
        )
    if scheme.startswith("RGB"):
        return "Give 8-bit colour images"
    return "Besides zeros it holds a single value, as a mask or a label does. Give the right file"


def size_problem(
    image: np.ndarray,
    available: Sequence[bool],
    properties: Mapping[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
) -> str | None:
    """Say why an image cannot be resampled to the planned spacing (nothing, or too much, would come out), or None.

    Args:
        image: `(C, X, Y, Z)` as read; nnU-Net leaves out the zeros around it first.
        available: the channels that are available.
        properties: the reader's.
        plans_manager: the plans.
        configuration_manager: of the configuration.
    """
    axes = plans_manager.transpose_forward
    spacing = [float(properties["spacing"][axis]) for axis in axes]
    target = list(configuration_manager.spacing)
    target = [spacing[0], *target] if len(target) < len(spacing) else target
    if not all(0 < value < math.inf for value in spacing):
        return (
            f"its spacing is {format_size(spacing)} mm; all three must be positive numbers. Correct it in the file's "
            "header."
        )
    content = _content_sizes(image, available)
    full = [image.shape[1 + axis] for axis in axes]
    sizes = [content[axis] for axis in axes]
    resampled = [int(value) for value in compute_new_shape(sizes, spacing, target)]
    memory = _memory_bytes()
    needed = math.prod(resampled) * len(image) * _BYTES_PER_VALUE
    planned = configuration_manager.configuration.get("median_image_size_in_voxels", ())
    if min(resampled) < 1:
        wrong = "nothing"
    elif memory is not None and needed > memory:
        wrong = f"{needed / 2**30:.0f} GB, more than this machine has"
    elif _is_absurd(resampled, planned):
        wrong = f"far more than the {format_size(planned)} of the images that the model was planned for"
    else:
        return None
    return (
        f"its {format_size(sizes)} voxels{'' if sizes == full else ' (without zeros around)'} of "
        f"{format_size(spacing)} mm would be resampled to {format_size(resampled)} voxels of {format_size(target)} mm: "
        f"{wrong}. Is the spacing in its header right, and in mm?"
    )


def _content_sizes(image: np.ndarray, available: Sequence[bool]) -> list[int]:
    """Return the sizes of the box of all voxels that are not zero in some available channel."""
    is_content = np.zeros(image.shape[1:], dtype=bool)
    for channel, there in zip(image, available, strict=True):
        if there:
            is_content |= channel != 0
    sizes = []
    for axis in range(3):
        found = np.flatnonzero(is_content.any(axis=tuple({0, 1, 2} - {axis})))
        sizes.append(int(found[-1] - found[0] + 1) if len(found) else image.shape[1 + axis])
    return sizes


def _is_absurd(sizes: Sequence[int], planned: Sequence[int]) -> bool:
    times = [size / usual for size, usual in zip(sizes[::-1], planned[::-1], strict=False)]
    return max(times, default=0) > _MOST_TIMES or math.prod(times) > _MOST_TIMES_IN_ALL


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
