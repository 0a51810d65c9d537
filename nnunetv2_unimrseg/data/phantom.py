"""The generated demo dataset: toy heads with a tumour of three nested classes in four modalities.

Everything is drawn from a seed: the shape of the head, its tissues, the place, size and shape of the tumour, the bias
field and the noise. Intensities follow `INTENSITIES`. Every tumour class differs from the class around it in at least
two modalities, but never in all. Every modality also has spots of its own, which look like tumour and which no other
modality shows. So one modality alone is ambiguous, and further modalities help.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunetv2_unimrseg.data.whole_image import image_problem
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.utils.files import remove_leftovers, whole_files

MODALITIES = ("FLAIR", "T1", "T1ce", "T2")
LABELS = {"background": 0, "edema": 1, "non_enhancing_tumour": 2, "enhancing_tumour": 3}
TISSUES = ("scalp", "skull", "fluid", "grey_matter", "white_matter", "deep_grey_matter", *list(LABELS)[1:])

INTENSITIES = {
    "FLAIR": (0.55, 0.10, 0.14, 0.60, 0.47, 0.56, 0.88, 0.88, 0.88),
    "T1": (0.85, 0.12, 0.16, 0.52, 0.75, 0.58, None, 0.36, 0.36),
    "T1ce": (0.85, 0.14, 0.18, 0.54, 0.75, 0.60, None, 0.36, 1.05),
    "T2": (0.50, 0.10, 1.00, 0.62, 0.42, 0.53, 0.70, 0.95, 0.50),
}
"""Intensity of each of `TISSUES` by modality, before bias field and noise; None: as the tissue it lies in."""

SPOT_INTENSITIES = {"FLAIR": 0.88, "T1": 0.36, "T1ce": 1.05, "T2": 0.82}
"""Intensity of the spots that only this modality shows."""

NOISE = 0.04
"""Standard deviation of the noise, in units of `INTENSITIES`."""

BIAS = 0.12
"""Standard deviation of the logarithm of the bias field."""

FEWEST_VOXELS = 8
"""Every tumour class has at least this many voxels."""

SMALLEST_EDGE = 20
"""Fewest voxels along an axis: below this the three classes do not fit into each other."""


@dataclasses.dataclass(frozen=True)
class Patient:
    """One generated patient.

    Attributes:
        images: intensities, positive in the head and zero outside, shape `(4, X, Y, Z)`, in the order of `MODALITIES`.
        labels: values of `LABELS`, shape `(X, Y, Z)`.
    """

    images: np.ndarray
    labels: np.ndarray


def write_phantom_dataset(
    dataset_folder: Path,
    num_training: int,
    num_unseen: int,
    shape: Sequence[int] = (40, 48, 40),
    spacing: Sequence[float] = (3.0, 3.0, 3.0),
    seed: int = 0,
) -> None:
    """Write a raw nnU-Net dataset: dataset.json, imagesTr, labelsTr, imagesTs and labelsTs (the unseen patients).

    The same arguments give the same files, byte for byte, and a patient does not depend on how many there are.

    Args:
        dataset_folder: the folder to make, `.../DatasetXXX_Name`.
        num_training: patients in imagesTr, at least 1.
        num_unseen: patients in imagesTs.
        shape: voxels along x, y, z.
        spacing: millimetres along x, y, z.
        seed: what everything is drawn from.

    Raises:
        UserError: when the folder already holds something, or a number is out of range; nothing is written then.
    """
    from tqdm import tqdm

    dataset_folder = Path(dataset_folder)
    remove_leftovers(dataset_folder)
    _check_arguments(num_training, num_unseen, shape, spacing, seed)
    if dataset_folder.exists() and (not dataset_folder.is_dir() or any(dataset_folder.iterdir())):
        raise UserError(
            f"'{dataset_folder}' is already there and not empty; the phantom would overwrite it. "
            "Choose another dataset number, or remove that folder first."
        )
    patients = [("Tr", number) for number in range(num_training)] + [("Ts", number) for number in range(num_unseen)]
    with whole_files(dataset_folder, image_problem, failures=(RuntimeError,)) as unfinished:
        for split, number in tqdm(patients, desc="phantom", unit="patient"):
            generator = np.random.default_rng([seed, ("Tr", "Ts").index(split), number])
            name = f"{'phantom' if split == 'Tr' else 'unseen'}_{number:03d}"
            _write_patient(unfinished, split, name, make_patient(generator, shape), spacing)
        description = {
            "channel_names": {str(channel): name for channel, name in enumerate(MODALITIES)},
            "labels": LABELS,
            "numTraining": num_training,
            "file_ending": ".nii.gz",
            "name": "UniMRSegPhantom",
            "description": f"Generated toy brains with a tumour, seed {seed}; not medical data.",
        }
        (unfinished / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for name in ("imagesTs", "labelsTs"):  # of no unseen patient
        (dataset_folder / name).mkdir(exist_ok=True)


def make_patient(
    generator: np.random.Generator, shape: Sequence[int], *, noise: float = NOISE, bias: float = BIAS
) -> Patient:
    """Draw one patient.

    Args:
        generator: where every draw comes from.
        shape: voxels along x, y, z, each at least `SMALLEST_EDGE`.
        noise: standard deviation of the noise, in units of `INTENSITIES`.
        bias: standard deviation of the logarithm of the bias field.
    """
    shape = tuple(shape)
    coordinates = _head_coordinates(generator, shape)
    tissues = _draw_tissues(generator, coordinates)
    labels = _draw_tumour(generator, coordinates, tissues)
    head = tissues >= 0
    tissues[(labels > 0) & (tissues == TISSUES.index("fluid"))] = TISSUES.index("white_matter")
    tumour_tissues = labels + np.int8(TISSUES.index("edema") - LABELS["edema"])
    with_edema, without_edema = (
        _partial_volumes(np.where(labels >= first, tumour_tissues, tissues)) for first in (1, 2)
    )
    images = []
    for modality in MODALITIES:
        intensities = INTENSITIES[modality]
        parts = without_edema if None in intensities else with_edema
        image = np.tensordot([value or 0.0 for value in intensities], parts, axes=1)
        spots = _draw_spots(generator, coordinates, tissues, labels > 0)
        image += spots * (SPOT_INTENSITIES[modality] - image)
        image *= np.exp(bias * _smooth_field(generator, shape, 0.3))
        image *= 1 + noise * _smooth_field(generator, shape, 0.03)
        image += generator.normal(0, noise, shape) if noise else 0
        gain = generator.uniform(400, 1200)
        images.append(np.where(head, np.maximum(np.rint(gain * image), 1), 0))
    return Patient(np.stack(images).astype(np.int16), labels.astype(np.uint8))


def _check_arguments(
    num_training: int, num_unseen: int, shape: Sequence[int], spacing: Sequence[float], seed: int
) -> None:
    problems = []
    if num_training < 1:
        problems.append(f"at least 1 training patient is needed, found {num_training}")
    if num_unseen < 0:
        problems.append(f"the number of unseen patients cannot be negative, found {num_unseen}")
    if len(shape) != 3 or min(shape) < SMALLEST_EDGE:
        problems.append(f"the shape must be three numbers of at least {SMALLEST_EDGE} voxels, found {tuple(shape)}")
    if len(spacing) != 3 or not min(spacing) > 0:
        problems.append(f"the spacing must be three positive numbers of millimetres, found {tuple(spacing)}")
    if seed < 0:
        problems.append(f"the seed cannot be negative, found {seed}")
    if problems:
        raise UserError("The phantom cannot be made: " + "; ".join(problems) + ".")


def _write_patient(folder: Path, split: str, name: str, patient: Patient, spacing: Sequence[float]) -> None:
    import SimpleITK

    def write(array: np.ndarray, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing([float(edge) for edge in spacing])
        half = [edge * size / 2 for edge, size in zip(spacing, array.shape, strict=True)]
        image.SetOrigin([-half[0] + 4.0, -half[1] - 12.5, -half[2] + 31.0])
        SimpleITK.WriteImage(image, str(path), useCompression=True)

    for channel, image in enumerate(patient.images):
        write(image, folder / f"images{split}" / f"{name}_{channel:04d}.nii.gz")
    write(patient.labels, folder / f"labels{split}" / f"{name}.nii.gz")


def _smooth_field(generator: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """Draw a field of mean 0 and standard deviation 1 that is smooth over `scale` of the volume's edges."""
    field = ndimage.gaussian_filter(generator.normal(size=shape), [scale * size for size in shape], mode="nearest")
    return np.asarray((field - field.mean()) / field.std())


def _head_coordinates(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Return warped coordinates, `(3, X, Y, Z)`, in which every head is the unit ball round the origin.

    The first axis runs from right to left, the midline at 0; the second from front to back; the third upwards.
    """
    axes = [np.linspace(-1, 1, size) for size in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    centre = generator.uniform(-0.04, 0.04, 3)[:, None, None, None]
    half_axes = (np.array([0.84, 0.9, 0.9]) + generator.uniform(-0.06, 0.04, 3))[:, None, None, None]
    warp = np.stack([_smooth_field(generator, shape, 0.17) for _ in range(3)])
    return (grid - centre) / half_axes + 0.035 * warp


def _draw_tissues(generator: np.random.Generator, coordinates: np.ndarray) -> np.ndarray:
    """Return the index into `TISSUES` of every voxel, -1 outside the head, shape `(X, Y, Z)`."""
    shape = coordinates.shape[1:]
    x, y, z = coordinates
    radius = np.sqrt((coordinates**2).sum(0))
    folds = _smooth_field(generator, shape, 0.045)
    brain = radius < generator.uniform(0.80, 0.84)
    inner = radius + 0.05 * folds < generator.uniform(0.62, 0.68)
    cleft = (np.abs(x) < 0.035) & (radius > 0.55) & (z > -0.3)

    tissues = np.full(shape, -1, dtype=np.int8)

    def paint(where: np.ndarray, tissue: str) -> None:
        tissues[where] = TISSUES.index(tissue)

    paint(radius < 1, "scalp")
    paint(radius < generator.uniform(0.90, 0.93), "skull")
    paint(brain, "fluid")
    paint(brain & (radius + 0.04 * folds < 0.80) & ~cleft, "grey_matter")
    paint(inner & ~cleft, "white_matter")
    size = generator.uniform(0.8, 1.3)
    for side in (-1, 1):
        nucleus = ((x - side * 0.26) / 0.12) ** 2 + ((y - 0.02) / 0.2) ** 2 + ((z + 0.1) / 0.15) ** 2
        paint(nucleus < 1, "deep_grey_matter")
        bend = 0.10 + 0.25 * y**2
        ventricle = ((x - side * bend) / (0.085 * size)) ** 2 + (y / (0.42 * size)) ** 2 + ((z - 0.1) / 0.16) ** 2
        paint(ventricle < 1, "fluid")
    return tissues


def _draw_tumour(generator: np.random.Generator, coordinates: np.ndarray, tissues: np.ndarray) -> np.ndarray:
    """Return the label of every voxel: a blob, a smaller one inside it, and a smaller one inside that."""
    while True:
        labels = _draw_nested_blobs(generator, coordinates, tissues)
        if np.bincount(labels.ravel(), minlength=len(LABELS)).min() >= FEWEST_VOXELS:
            return labels


def _draw_nested_blobs(generator: np.random.Generator, coordinates: np.ndarray, tissues: np.ndarray) -> np.ndarray:
    depth = np.sqrt((coordinates**2).sum(0))
    white_matter = tissues == TISSUES.index("white_matter")
    centres = (depth > 0.28) & (depth < 0.52) & white_matter
    allowed = depth < 0.78
    voxels = generator.uniform(0.16, 0.32) * np.count_nonzero(allowed)

    labels = np.zeros(tissues.shape, dtype=np.uint8)
    for label, share in ((1, 0.52), (2, 0.5), (3, 0.0)):
        rough = 0.09 * _smooth_field(generator, tissues.shape, 0.09)
        blob = _nearest_voxels(_distance_from_random_voxel(generator, coordinates, centres) + rough, allowed, voxels)
        labels[blob] = label
        voxels = share * generator.uniform(0.6, 1.25) * np.count_nonzero(blob)
        allowed = ndimage.binary_erosion(blob)
        depth_inside = ndimage.distance_transform_edt(blob)
        centres = depth_inside >= 0.65 * depth_inside.max()
    return labels


def _distance_from_random_voxel(
    generator: np.random.Generator, coordinates: np.ndarray, centres: np.ndarray, stretch: float = 1.25
) -> np.ndarray:
    """Return every voxel's distance from a random voxel of a mask, measured in an ellipsoid of random axes."""
    candidates = np.argwhere(centres)
    x, y, z = candidates[generator.integers(len(candidates))]
    offsets = coordinates - coordinates[:, x, y, z][:, None, None, None]
    axes = generator.uniform(1 / stretch, stretch, 3)[:, None, None, None]
    return np.asarray(np.sqrt(((offsets / axes) ** 2).sum(0)))


def _nearest_voxels(distance: np.ndarray, allowed: np.ndarray, count: float) -> np.ndarray:
    """Return the mask of the `count` allowed voxels of smallest distance, their largest connected part."""
    candidates = np.sort(distance[allowed])
    if not len(candidates):
        return allowed
    threshold = candidates[min(max(int(count), 1), len(candidates)) - 1]
    parts, _ = ndimage.label(allowed & (distance <= threshold))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def _draw_spots(
    generator: np.random.Generator, coordinates: np.ndarray, tissues: np.ndarray, tumour: np.ndarray
) -> np.ndarray:
    """Return the weight, 0 to 1, of one modality's own spots: two to four lesion-like blobs outside the tumour."""
    shape = tissues.shape
    brain = np.isin(tissues, [TISSUES.index("grey_matter"), TISSUES.index("white_matter")])
    centres = brain & ((coordinates**2).sum(0) < 0.7**2)
    rough = 0.025 * _smooth_field(generator, shape, 0.06)
    spots = np.zeros(shape, dtype=bool)
    for _ in range(generator.integers(2, 5)):
        distance = _distance_from_random_voxel(generator, coordinates, centres, stretch=1.4)
        spots |= distance + rough < generator.uniform(0.10, 0.22)
    elsewhere = ~ndimage.binary_dilation(tumour)
    blurred: np.ndarray = ndimage.gaussian_filter((spots & brain & elsewhere).astype(np.float64), 0.5)
    return np.where(elsewhere, blurred, 0)


def _partial_volumes(tissues: np.ndarray) -> np.ndarray:
    """Return each tissue's share of every voxel, `(len(TISSUES), X, Y, Z)`, as a scanner's blur mixes them."""
    crisp = np.stack([tissues == index for index in range(len(TISSUES))]).astype(np.float64)
    return np.stack([ndimage.gaussian_filter(tissue, 0.45) for tissue in crisp])
