"""Reads the files of one case, some of which may be absent, and says all that is wrong with them.

Everything here appends what it finds to a list of problems instead of raising, so that a whole folder can be checked
and every problem of every case be told at once.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_unimrseg.data.itk_formats import reason_of
from nnunetv2_unimrseg.data.scan_folder import split_name, why_unusable
from nnunetv2_unimrseg.data.whole_image import image_problem
from nnunetv2_unimrseg.errors import UserError, by
from nnunetv2_unimrseg.modalities import Modalities, Subset

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

LARGEST_DISPLACEMENT = 0.5
"""Voxels by which the corners of two images of a case may lie apart; beyond this they show different places."""

NOTICED_DISPLACEMENT = 1e-3
"""Voxels from which on a displacement is worth a warning."""

_SMALLEST_VOLUME = 1e-6
"""Of a voxel with edges of length one, below which its edges lie in a plane."""


@dataclass(frozen=True)
class RawCase:
    """The files of a case, read into its channels.

    Attributes:
        image: `(C, X, Y, Z)`, float32, zeros in absent channels.
        properties: the reader's, of the first available file in channel order.
        reference: that file.
        files: the file of each channel that has one; one file may be that of several.
    """

    image: np.ndarray
    properties: dict
    reference: str
    files: dict[int, str]


@dataclass(frozen=True)
class _Image:
    path: str
    data: np.ndarray
    """Shape (channels, X, Y, Z), float32."""
    properties: dict


def case_name(files: Sequence[str], file_ending: str) -> str:
    """Return the name of a case, from that of its first file."""
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
    files: Sequence[str], modalities: Modalities, file_ending: str, problems: list[str]
) -> list[int] | None:
    """Say which channel each file of a case is, for files of one channel each.

    As many files as there are modalities are positional, as in nnU-Net (but where their names number them as one
    case, each modality must be there once). Otherwise the `_XXXX` suffix decides.

    Args:
        files: the case's files.
        modalities: the dataset's modalities.
        file_ending: as in dataset.json.
        problems: is appended to.

    Returns:
        The channel number of each file, or None where there is a problem.
    """
    splits = [split_name(file, file_ending) for file in files]
    positional = len(files) == len(modalities)
    of_one_case = None not in splits and len({split[0] for split in splits}) == 1
    if positional and not of_one_case:
        return list(range(len(files)))
    found = len(problems)
    owner: dict[int, str] = {}
    for file, split in zip(files, splits, strict=True):
        if split is None:
            problems.append(no_suffix(file, modalities, file_ending))
        elif split[1] >= len(modalities):
            problems.append(
                f"{file}: there is no channel {split[1]:04d}. The channels are {_numbered(modalities)}; the last is "
                f"{len(modalities) - 1:04d}."
            )
        elif split[1] in owner:
            problems.append(
                f"{file}: is channel {split[1]:04d} ({modalities.names[split[1]]}) a second time, after "
                f"{owner[split[1]]}. Remove one of them."
            )
        else:
            owner[split[1]] = file
    if len(problems) > found:
        return None
    return list(range(len(files))) if positional else list(owner)


def check_intensities(data: np.ndarray, modalities: Modalities, problems: list[str]) -> Subset:
    """Say which channels of a raw image are available, at least one; see `available_channels` for the arguments."""
    found = len(problems)
    available = available_channels(data, modalities, problems)
    if not any(available) and len(problems) == found:
        problems.append(
            "no modality is available: every channel is absent or holds one single intensity. Give at least one image "
            f"of {', '.join(modalities)}."
        )
    return available


def available_channels(data: np.ndarray, modalities: Modalities, problems: list[str]) -> Subset:
    """Say which channels of a raw image are available: all but those of one constant intensity.

    Args:
        data: shape (C, X, Y, Z), before any preprocessing.
        modalities: the C modalities.
        problems: is appended to where a channel holds NaN or Inf.
    """
    available = []
    for number, channel in enumerate(data):
        low, high = _extremes(channel)
        if not (np.isfinite(low) and np.isfinite(high)):
            problems.append(
                f"{modalities.names[number]} (channel {number}) holds NaN or infinite values. Replace them, or leave "
                "this modality out."
            )
        available.append(bool(low != high))
    return tuple(available)


def read_case(
    files: Sequence[str], reader: BaseReaderWriter, modalities: Modalities, file_ending: str, problems: list[str]
) -> RawCase | None:
    """Read the files of one case, checked, each into its channel.

    Args:
        files: any non-empty subset of the case's files.
        reader: an instance of the plans' reader.
        modalities: the dataset's C modalities.
        file_ending: as in dataset.json.
        problems: is appended to.

    Returns:
        None where there is a problem.
    """
    found = len(problems)
    if not files:
        problems.append(f"no file. Give at least one of {_numbered(modalities)}.")
        return None
    read = [_read_file(str(file), reader, problems) for file in files]
    images = [image for image in read if image is not None]
    channels = _stacked_channels(images, modalities)
    if channels is None:
        _refuse_several_channels(images, modalities, problems)
        channels = assign_channels(files, modalities, file_ending, problems)
    ordered = _in_order(channels, images)
    reference = next((image for image in ordered if _holds_something(image)), ordered[0] if ordered else None)
    for image in images:
        if image is not reference:
            _compare(reference, image, problems)
    if len(problems) > found:
        return None
    data = np.zeros((len(modalities), *reference.data.shape[1:]), dtype=np.float32)
    of_channels = {}
    for channel, image in zip(channels, images, strict=True):
        own = range(channel, channel + len(image.data))
        data[own.start : own.stop] = image.data
        of_channels.update(dict.fromkeys(own, image.path))
    return RawCase(data, reference.properties, reference.path, of_channels)


def read_label(path: str, reader: BaseReaderWriter, case: RawCase | None, problems: list[str]) -> np.ndarray | None:
    """Read the label of a case `(1, X, Y, Z)`, checked to lie on the grid of its images.

    Args:
        path: the label's file.
        reader: an instance of the dataset's reader.
        case: what `read_case` returns of its images.
        problems: is appended to.

    Returns:
        None where the label cannot be read or lies on another grid.
    """
    found = len(problems)
    label = _read_file(path, reader, problems, read=reader.read_seg)
    if label is not None and case is not None:
        _compare(_Image(case.reference, case.image, case.properties), label, problems)
    return label.data if label is not None and len(problems) == found else None


def _read_file(
    path: str,
    reader: BaseReaderWriter,
    problems: list[str],
    read: Callable[[str], tuple[np.ndarray, dict]] | None = None,
) -> _Image | None:
    unusable = why_unusable(path)
    if unusable is not None:
        problems.append(f"{path}: {unusable}")
        return None
    advice = "Copy or convert it again, or leave it out."
    try:
        wrong = image_problem(path)
        data, properties = (None, None) if wrong else read(path) if read else reader.read_images([path])
    except Exception as error:  # readers raise whatever their library raises, a MemoryError where a size is absurd
        wrong = f"it cannot be read: {reason_of(error)}"
    if wrong and Path(path).name.startswith("._"):
        advice = "It is a hidden file that macOS leaves beside others, no scan; remove it."
    if wrong:
        problems.append(f"{path}: cannot be used: {wrong}. {advice}")
        return None
    if data.size == 0:
        problems.append(f"{path}: holds no voxel (shape {data.shape[1:]}). {advice}")
        return None
    image = _Image(path, data.astype(np.float32, copy=False), _spatial_only(properties))
    if not _is_place(_affine(image.properties)):
        problems.append(
            f"{path}: cannot be used: its header gives it no position in space: the matrix from voxels to millimetres "
            "is singular or not finite. Correct its geometry (of NIfTI: qform, sform, pixdim), or leave it out."
        )
        return None
    return image


def _is_place(affine: np.ndarray | None) -> bool:
    """Whether a matrix from voxel indices to positions can be inverted; None, where none is known, passes."""
    if affine is None:
        return True
    matrix = affine[:-1, :-1]
    lengths = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and (lengths > 0).all()):
        return False
    return bool(abs(np.linalg.det(matrix / lengths)) > _SMALLEST_VOLUME)


def named_channels(files: Sequence[str], modalities: Modalities, file_ending: str) -> set[int]:
    """Return the channels that the names of a case's files say they are; none where the names are wrong."""
    return set(assign_channels(files, modalities, file_ending, []) or ())


def _spatial_only(properties: dict) -> dict:
    """Drop the channel axis from the geometry of a file of several channels, or no segmentation could be written."""
    geometry = properties.get("sitk_stuff")
    if geometry is None or len(geometry["spacing"]) < 4:
        return properties
    direction = np.reshape(geometry["direction"], (4, 4))[:3, :3]
    spatial = {
        **geometry,
        "spacing": geometry["spacing"][:3],
        "origin": geometry["origin"][:3],
        "direction": tuple(direction.ravel().tolist()),
    }
    return {**properties, "sitk_stuff": spatial}


def _stacked_channels(images: Sequence[_Image], modalities: Modalities) -> list[int] | None:
    """Return the first channel of each file where files of several channels give all modalities, as in nnU-Net."""
    ends = list(itertools.accumulate(len(image.data) for image in images))
    if len(images) == len(modalities) or not ends or ends[-1] != len(modalities):
        return None
    return [0, *ends[:-1]]


def _refuse_several_channels(images: Sequence[_Image], modalities: Modalities, problems: list[str]) -> None:
    for image in images:
        if len(image.data) > 1:
            problems.append(
                f"{image.path}: holds {len(image.data)} channels. A file holds either one modality, or a single file "
                f"all {len(modalities)} ({', '.join(modalities)})."
            )


def _in_order(channels: Sequence[int] | None, images: Sequence[_Image]) -> list[_Image]:
    if channels is None or len(channels) != len(images):
        return list(images)
    return [image for _, image in sorted(zip(channels, images, strict=True), key=lambda pair: pair[0])]


def _holds_something(image: _Image) -> bool:
    return any(low != high for low, high in map(_extremes, image.data))


def _extremes(channel: np.ndarray) -> tuple[np.float32, np.float32]:
    """Return the smallest and largest value in the precision of preprocessing; both NaN where one voxel is."""
    with np.errstate(over="ignore", invalid="ignore"):
        channel = channel.astype(np.float32, copy=False)
        return channel.min(), channel.max()


def _compare(reference: _Image, image: _Image, problems: list[str]) -> None:
    both = f"{reference.path} and {image.path}"
    shapes = reference.data.shape[1:], image.data.shape[1:]
    spacings = reference.properties["spacing"], image.properties["spacing"]
    advice = "All files of a case must lie on one voxel grid; resample one onto the other."
    if shapes[0] != shapes[1]:
        problems.append(f"{both} differ in shape: {by(shapes[0])} and {by(shapes[1])} voxels. {advice}")
    elif not np.allclose(*spacings):  # as nnU-Net's readers compare them
        problems.append(f"{both} differ in spacing: {by(spacings[0])} and {by(spacings[1])}. {advice}")
    else:
        apart = _displacement(reference, image)
        if not apart <= LARGEST_DISPLACEMENT:
            problems.append(
                f"{both} differ in origin or direction: their corners lie up to {apart:.2f} voxels apart, more than "
                f"the {LARGEST_DISPLACEMENT} that are tolerated. {advice}"
            )
        elif apart > NOTICED_DISPLACEMENT:
            warnings.warn(
                f"{both} differ a little in origin or direction: their corners lie up to {apart:.3f} voxels apart. "
                "They are used as if they lay on one grid.",
                stacklevel=2,
            )


def _displacement(reference: _Image, image: _Image) -> float:
    """Return the largest distance between corresponding corner voxels, in voxels of the first image."""
    first, second = _affine(reference.properties), _affine(image.properties)
    if first is None or second is None or first.shape != second.shape:
        return 0.0
    dimensions = len(first) - 1
    sizes = reference.data.shape[:0:-1][:dimensions]
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in sizes))]).T
    apart = ((second - first) @ corners)[:dimensions]
    if not np.isfinite(apart).all():
        return np.inf
    return float(np.linalg.norm(np.linalg.pinv(first[:dimensions, :dimensions]) @ apart, axis=0).max())


def _affine(properties: dict) -> np.ndarray | None:
    """Return the matrix from voxel indices (x, y[, z]) to positions, or None where the reader knows none."""
    if "nibabel_stuff" in properties:
        geometry = properties["nibabel_stuff"]
        return np.asarray(geometry.get("reoriented_affine", geometry["original_affine"]), dtype=float)
    if "sitk_stuff" not in properties:
        return None
    geometry = properties["sitk_stuff"]
    dimensions = len(geometry["spacing"])
    affine = np.eye(dimensions + 1)
    affine[:-1, :-1] = np.reshape(geometry["direction"], (dimensions, dimensions)) * geometry["spacing"]
    affine[:-1, -1] = geometry["origin"]
    return affine


def _numbered(modalities: Modalities) -> str:
    return ", ".join(f"{number:04d} ({name})" for number, name in enumerate(modalities))


def raise_for_case(name: str, problems: Sequence[str]) -> None:
    """Raise one UserError for the problems of a case, if there are any."""
    if problems:
        raise UserError(f"Case '{name}' cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))
