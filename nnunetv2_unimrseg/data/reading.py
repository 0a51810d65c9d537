"""Reads the files of one case, some of which may be absent, and lists all that is wrong with them.

Nearly everything here returns the problems that it finds, one sentence or two each, instead of raising, so that a whole
folder can be checked and all problems of all cases be listed at once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_unimrseg.data.case_files import CaseFiles
from nnunetv2_unimrseg.data.itk_formats import explain_failure
from nnunetv2_unimrseg.data.scan_folder import split_name, why_unusable
from nnunetv2_unimrseg.data.voxel_grid import Image, grid_difference, has_position, spatial_only
from nnunetv2_unimrseg.data.whole_image import image_problem
from nnunetv2_unimrseg.errors import UserError, enumerated, listed
from nnunetv2_unimrseg.modalities import Modalities, Subset

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

    from nnunetv2_unimrseg.nnunet.types import ImageProperties


@dataclass(frozen=True)
class RawCase:
    """The files of a case, read into its channels.

    Attributes:
        image: `(C, X, Y, Z)`, float32, zeros in absent channels.
        properties: the reader's, of the first available file in channel order.
        reference: that file.
        files: the file of each channel that has one; a file of several channels stands at each of them.
    """

    image: np.ndarray
    properties: ImageProperties
    reference: str
    files: dict[int, str]


def case_name(files: Sequence[str], file_ending: str) -> str:
    """Return the name of a case: its own where it has one, otherwise that of its first file."""
    if isinstance(files, CaseFiles) and files.name:
        return files.name
    if not files:
        return "without files"
    split = split_name(files[0], file_ending)
    return split[0] if split else Path(files[0]).name.removesuffix(file_ending)


def no_suffix(path: str, modalities: Modalities, file_ending: str) -> str:
    """Return the problem of a file whose name does not say which channel it is."""
    return (
        f"{path}: the name has no channel suffix, so it is not known which modality it is. Name it "
        f"CASE_XXXX{file_ending}, XXXX being one of {_numbered(modalities)}."
    )


def assign_channels(
    files: Sequence[str], modalities: Modalities, file_ending: str
) -> tuple[list[int] | None, list[str]]:
    """Assign a channel to each file of a case: its only one, or its first where it holds all of a modality.

    `CaseFiles` say it themselves. If there are as many files as channels, their order decides, as in nnU-Net; but if
    their names number them as one case, each channel must be there once. Otherwise the `_XXXX` suffix decides.

    Args:
        files: the case's files.
        modalities: the dataset's modalities.
        file_ending: as in dataset.json.

    Returns:
        The channel number of each file, or None where there is a problem; and the problems.
    """
    if isinstance(files, CaseFiles):
        return files.channels, []
    splits = [split_name(file, file_ending) for file in files]
    positional = len(files) == modalities.num_channels
    of_one_case = None not in splits and len({split[0] for split in splits if split}) == 1
    if positional and not of_one_case:
        return list(range(len(files))), []
    problems: list[str] = []
    owner: dict[int, str] = {}
    for file, split in zip(files, splits, strict=True):
        if split is None:
            problems.append(no_suffix(file, modalities, file_ending))
        elif split[1] >= modalities.num_channels:
            problems.append(
                f"{file}: there is no channel {split[1]:04d}. The channels are {_numbered(modalities)}; the last is "
                f"{modalities.num_channels - 1:04d}."
            )
        elif split[1] in owner:
            problems.append(
                f"{file}: is channel {split[1]:04d} ({modalities.channel_names[split[1]]}) a second time, after "
                f"{owner[split[1]]}. Remove one of them."
            )
        else:
            owner[split[1]] = file
    if problems:
        return None, problems
    return list(range(len(files))) if positional else list(owner), []


def named_channels(files: Sequence[str], modalities: Modalities, file_ending: str) -> set[int]:
    """Return the channels of the modalities that the names of a case's files say; none where the names are wrong."""
    named = assign_channels(files, modalities, file_ending)[0] or ()
    return {channel for one in named for channel in modalities.channels[modalities.modality_of_channel(one)]}


def available_modalities(
    image: np.ndarray, modalities: Modalities, otherwise: str = "leave this modality out"
) -> tuple[Subset, list[str]]:
    """Say which modalities of a raw image are available: all but those of one constant intensity in every channel.

    Args:
        image: shape (C, X, Y, Z), before any preprocessing.
        modalities: of the C channels.
        otherwise: what to do with an image that cannot be mended.

    Returns:
        The available modalities; and a problem for each channel that holds NaN or Inf.
    """
    extremes = [extreme_values(channel) for channel in image]
    problems = [
        f"{name} (channel {number}) holds NaN or infinite values. Replace them, or {otherwise}."
        for number, (name, found) in enumerate(zip(modalities.channel_names, extremes, strict=True))
        if not np.isfinite(found).all()
    ]
    return modalities.collapse([low != high for low, high in extremes]), problems


def check_intensities(
    image: np.ndarray, modalities: Modalities, otherwise: str = "leave this modality out"
) -> tuple[Subset, list[str]]:
    """Say which modalities of a raw image are available, as `available_modalities` does; none is a problem too."""
    available, problems = available_modalities(image, modalities, otherwise)
    if not any(available) and not problems:
        problems.append(
            "no modality is available: every channel is absent or holds one single intensity. Give at least one image "
            f"of {', '.join(modalities)}."
        )
    return available, problems


def read_case(
    files: Sequence[str],
    reader: BaseReaderWriter,
    modalities: Modalities,
    file_ending: str,
    otherwise: str | None = None,
) -> tuple[RawCase | None, list[str]]:
    """Read and check the files of one case, each into its channel.

    Args:
        files: any non-empty subset of the case's files.
        reader: an instance of the plans' reader.
        modalities: the dataset's, of C channels.
        file_ending: as in dataset.json.
        otherwise: what to do with a file that cannot be mended; by default to leave it out.

    Returns:
        The case, or None where there is a problem; and the problems.
    """
    if not files:
        return None, [f"no file. Give at least one of {_numbered(modalities)}."]
    read = [_read_file(str(file), lambda path: reader.read_images([path]), otherwise) for file in files]
    problems = [one for one in read if isinstance(one, str)]
    images = [one for one in read if isinstance(one, Image)]
    channels = None if isinstance(files, CaseFiles) else _stacked_channels(images, modalities)
    if channels is None:
        channels, unassigned = assign_channels(files, modalities, file_ending)
        starts: list[int | None] = [None] * len(images)
        if channels is not None and len(channels) == len(images):
            starts = list(channels)
        problems += [*_several_channels(starts, images, modalities), *unassigned]
    if not images:
        return None, problems
    ordered = _in_order(channels, images)
    reference = next(filter(_holds_something, ordered), ordered[0])
    differences = [grid_difference(reference, image) for image in images if image is not reference]
    problems += filter(None, differences)
    problems += _overlaps(channels, images, modalities)
    if problems or channels is None:
        return None, problems
    data = np.zeros((modalities.num_channels, *reference.data.shape[1:]), dtype=np.float32)
    of_channels = {}
    for channel, image in zip(channels, images, strict=True):
        own = range(channel, channel + len(image.data))
        data[own.start : own.stop] = image.data
        of_channels.update(dict.fromkeys(own, image.path))
    if problems := partial_modalities(data, of_channels, modalities):
        return None, problems
    return RawCase(data, reference.properties, reference.path, of_channels), []


def read_usable_case(
    name: str,
    files: Sequence[str],
    reader: BaseReaderWriter,
    modalities: Modalities,
    file_ending: str,
    problems: Sequence[str] = (),
) -> RawCase:
    """Read the files of one case, of which at least one must hold an available modality.

    Args:
        name: the case's.
        files: any non-empty subset of the case's files.
        reader: an instance of the plans' reader.
        modalities: the dataset's, of C channels.
        file_ending: as in dataset.json.
        problems: found before, which are listed first.

    Raises:
        UserError: one error that lists all problems of the case.
    """
    case, found = read_case(files, reader, modalities, file_ending)
    if case is not None:
        found = check_intensities(case.image, modalities)[1]
    found = [*problems, *found]
    if case is None or found:
        raise UserError(f"Case '{name}' cannot be used:\n{listed(found)}")
    return case


def read_label(
    path: str, reader: BaseReaderWriter, case: RawCase | None, otherwise: str | None = None
) -> tuple[np.ndarray | None, list[str]]:
    """Read the label of a case `(1, X, Y, Z)`, checked to lie on the grid of its images.

    Args:
        path: the label's file.
        reader: an instance of the dataset's reader.
        case: its images, with which the label is compared; None for no comparison.
        otherwise: what to do with a file that cannot be mended; by default to leave it out.

    Returns:
        The label, or None where it cannot be read or lies on another grid; and the problems.
    """
    label = _read_file(path, reader.read_seg, otherwise)
    if isinstance(label, str):
        return None, [label]
    if case is not None and (problem := grid_difference(Image(case.reference, case.image, case.properties), label)):
        return None, [problem]
    return label.data, []


def _read_file(
    path: str, read: Callable[[str], tuple[np.ndarray, ImageProperties]], otherwise: str | None
) -> Image | str:
    """Read a file, or say why it cannot be used."""
    if problem := why_unusable(path, otherwise):
        return f"{path}: {problem}"
    otherwise = otherwise or "leave it out"
    advice = f"Copy or convert it again, or {otherwise}."
    if Path(path).name.startswith("._"):
        advice = "It is a hidden file that macOS leaves beside others, no scan; remove it."
    try:
        if problem := image_problem(path):
            return f"{path}: cannot be used: {problem}. {advice}"
        data, properties = read(path)
    except Exception as error:  # readers raise whatever their library raises, a MemoryError where a size is absurd
        return f"{path}: cannot be used: it cannot be read: {explain_failure(error)}. {advice}"
    if data.size == 0:
        return f"{path}: holds no voxel (shape {data.shape[1:]}). {advice}"
    image = Image(path, data.astype(np.float32, copy=False), spatial_only(properties))
    if not has_position(image.properties):
        return (
            f"{path}: cannot be used: its header gives it no position in space: the matrix from voxels to millimetres "
            f"is singular or not finite. Correct its geometry (of NIfTI: qform, sform, pixdim), or {otherwise}."
        )
    return image


def _stacked_channels(images: Sequence[Image], modalities: Modalities) -> list[int] | None:
    """Return the first channel of each file where files of several channels give all modalities, as in nnU-Net.

    Where dataset.json groups channels, only a single file may; of several, their numbers say what they hold.
    """
    if len(images) > 1 and modalities.groups is not None:
        return None
    ends = list(itertools.accumulate(len(image.data) for image in images))
    if len(images) == modalities.num_channels or not ends or ends[-1] != modalities.num_channels:
        return None
    return [0, *ends[:-1]]


def _several_channels(starts: Sequence[int | None], images: Sequence[Image], modalities: Modalities) -> list[str]:
    """Return a problem for each file of several channels that are not all of one modality."""
    together = [list(channels) for channels in modalities.channels]
    problems = []
    for start, image in zip(starts, images, strict=True):
        own = [] if start is None else list(range(start, start + len(image.data)))
        if len(image.data) == 1 or own in together:
            continue
        problem = (
            f"{image.path}: holds {len(image.data)} channels. A file holds either one modality, or a single file all "
            f"{modalities.num_channels} ({', '.join(modalities.channel_names)})."
        )
        if own and own[-1] < modalities.num_channels:
            problem += (
                f" If its channels are one modality, say so in dataset.json: "
                f'"unimrseg": {{"modalities": {{"NAME": {own}, ...}}}}, and number the file by the first of them.'
            )
        problems.append(problem)
    return problems


def _overlaps(channels: Sequence[int] | None, images: Sequence[Image], modalities: Modalities) -> list[str]:
    """Return a problem for each channel that a file holds a second time, beside others."""
    owner: dict[int, str] = {}
    problems = []
    if channels is None or len(channels) != len(images):
        return []
    for start, image in zip(channels, images, strict=True):
        for channel in range(start, start + len(image.data)):
            if owner.setdefault(channel, image.path) != image.path and channel < modalities.num_channels:
                problems.append(
                    f"{image.path}: is channel {channel:04d} ({modalities.channel_names[channel]}) a second time, "
                    f"after {owner[channel]}. Remove one of them."
                )
    return problems


def partial_modalities(image: np.ndarray, files: Mapping[int, str], modalities: Modalities) -> list[str]:
    """Return a problem for each modality of which only some channels are there.

    Args:
        image: `(C, X, Y, Z)` as read, zeros in absent channels.
        files: the file of each channel that has one. Channels of one constant intensity count as absent, except where a
            file holds several.
        modalities: of the C channels.
    """
    problems = []
    for name, channels in zip(modalities, modalities.channels, strict=True):
        of_file = Counter(files.get(channel) for channel in channels)
        varies = {channel for channel in channels if len(channels) > 1 and np.ptp(image[channel]) != 0}
        there = {
            channel for channel in channels if channel in files and (channel in varies or of_file[files[channel]] > 1)
        }
        if varies and len(there) < len(channels):
            only, absent = sorted(there), [channel for channel in channels if channel not in there]
            blank = [files[channel] for channel in absent if channel in files]
            problems.append(
                f"{name} needs the channels {modalities.describe_channels(channels)}; the case has only "
                f"{modalities.describe_channels(only)}"
                f"{f', and {enumerated(blank, 3)} holds one single intensity' if blank else ''}. Add "
                f"{modalities.describe_channels(absent)}, or leave {name} out as a whole."
            )
    return problems


def _in_order(channels: Sequence[int] | None, images: Sequence[Image]) -> list[Image]:
    if channels is None or len(channels) != len(images):
        return list(images)
    return [image for _, image in sorted(zip(channels, images, strict=True), key=lambda pair: pair[0])]


def _holds_something(image: Image) -> bool:
    return any(low != high for low, high in map(extreme_values, image.data))


def extreme_values(channel: np.ndarray) -> tuple[float, float]:
    """Return the smallest and largest value in the precision of preprocessing, float32; NaN where one voxel is."""
    with np.errstate(over="ignore", invalid="ignore"):
        channel = channel.astype(np.float32, copy=False)
        return float(channel.min()), float(channel.max())


def _numbered(modalities: Modalities) -> str:
    return modalities.describe_channels(range(modalities.num_channels))
