"""The voxel grid of an image: where it lies in space, and whether two images lie on one grid."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_unimrseg.errors import format_size

if TYPE_CHECKING:
    from nnunetv2_unimrseg.nnunet.types import ImageProperties, SitkGeometry

LARGEST_DISPLACEMENT = 0.5
"""How many voxels the corners of two images of a case may lie apart; beyond this they show different places."""

NOTICED_DISPLACEMENT = 1e-3
"""Voxels from which on a displacement is worth a warning."""

_SMALLEST_VOLUME = 1e-6
"""The volume of a voxel with edges of length one, below which its edges lie in a plane."""


@dataclass(frozen=True)
class Image:
    """A file that was read.

    Attributes:
        path: the file.
        data: `(channels, X, Y, Z)`, float32.
        properties: the reader's.
    """

    path: str
    data: np.ndarray
    properties: ImageProperties


def has_position(properties: ImageProperties) -> bool:
    """Whether the matrix from voxel indices to positions can be inverted; True where the reader knows none."""
    affine = _affine(properties)
    if affine is None:
        return True
    matrix = affine[:-1, :-1]
    lengths = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and (lengths > 0).all()):
        return False
    return bool(abs(np.linalg.det(matrix / lengths)) > _SMALLEST_VOLUME)


def spatial_only(properties: ImageProperties) -> ImageProperties:
    """Drop the channel axis from the geometry of a file of several channels; no segmentation can be written with it."""
    geometry = properties.get("sitk_stuff")
    if geometry is None or len(geometry["spacing"]) < 4:
        return properties
    direction = np.reshape(geometry["direction"], (4, 4))[:3, :3]
    spatial: SitkGeometry = {
        "spacing": geometry["spacing"][:3],
        "origin": geometry["origin"][:3],
        "direction": tuple(direction.ravel().tolist()),
    }
    return {**properties, "sitk_stuff": spatial}


def grid_difference(reference: Image, image: Image) -> str | None:
    """Say how two images do not lie on one voxel grid, or None; a small displacement is only warned of."""
    both = f"{reference.path} and {image.path}"
    shapes = reference.data.shape[1:], image.data.shape[1:]
    spacings = reference.properties["spacing"], image.properties["spacing"]
    advice = "All files of a case must lie on one voxel grid; resample one onto the other."
    if shapes[0] != shapes[1]:
        return f"{both} differ in shape: {format_size(shapes[0])} and {format_size(shapes[1])} voxels. {advice}"
    if not np.allclose(*spacings):  # as nnU-Net's readers compare them
        return f"{both} differ in spacing: {format_size(spacings[0])} and {format_size(spacings[1])}. {advice}"
    apart = _displacement(reference, image)
    if not apart <= LARGEST_DISPLACEMENT:
        return (
            f"{both} differ in origin or direction: their corners lie up to {apart:.2f} voxels apart, more than "
            f"the {LARGEST_DISPLACEMENT} that are tolerated. {advice}"
        )
    if apart > NOTICED_DISPLACEMENT:
        warnings.warn(
            f"{both} differ a little in origin or direction: their corners lie up to {apart:.3f} voxels apart. "
            "They are used as if they lay on one grid.",
            stacklevel=2,
        )
    return None


def _displacement(reference: Image, image: Image) -> float:
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


def _affine(properties: ImageProperties) -> np.ndarray | None:
    """Return the matrix from voxel indices (x, y[, z]) to positions, or None where the reader knows none."""
    if "nibabel_stuff" in properties:
        known = properties["nibabel_stuff"]
        return np.asarray(known.get("reoriented_affine", known["original_affine"]), dtype=float)
    if "sitk_stuff" not in properties:
        return None
    geometry = properties["sitk_stuff"]
    dimensions = len(geometry["spacing"])
    affine = np.eye(dimensions + 1)
    affine[:-1, :-1] = np.reshape(geometry["direction"], (dimensions, dimensions)) * geometry["spacing"]
    affine[:-1, -1] = geometry["origin"]
    return affine
