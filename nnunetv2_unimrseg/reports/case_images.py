"""The images, the reference and the predictions of one evaluated case, as pictures show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation

LESION = "lesion"
"""The name of all foreground together, where the values of the labels are not recorded."""

COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")
"""Okabe and Ito's palette for labels: colour-blind readers can tell them apart, also on grey."""

OUTLINE = 2
"""Width of a label's outline in pixels."""

TINT, OPAQUE = 64, 255
"""Alpha of a label's area and of its outline, of 255."""

PERCENTILES = (1.0, 99.5)
"""Of the intensities that differ from the image's corner; they are shown as black and as white."""


@dataclass(frozen=True)
class CaseImages:
    """The images and segmentations of a case, as pictures show them.

    Attributes:
        case: its name.
        images: by modality, those with a file; each `(X, Y, Z)` in the reader's axis order, slices first; cropped to
            their content, except along the first axis.
        reference: label values, `(X, Y, Z)`; 0 where no label is scored, as inside the ignore label.
        predictions: label values by subset, `(X, Y, Z)`; those with a file.
        aspect: height of a voxel of a slice divided by its width.
    """

    case: str
    images: dict[str, np.ndarray]
    reference: np.ndarray
    predictions: dict[str, np.ndarray]
    aspect: float

    def windows(self) -> dict[str, tuple[float, float]]:
        """Return by modality the intensities to show as black and as white."""
        return {modality: intensity_window(image) for modality, image in self.images.items()}


def read_case_images(evaluation: Evaluation, case: Mapping[str, Any], subsets: Sequence[str]) -> CaseImages:
    """Read a case and its predictions with the reader that the evaluation used.

    Args:
        evaluation: one that has a folder.
        case: an entry of `evaluation.settings["cases"]`.
        subsets: names of those whose predictions to read; one without a file (its prediction failed) is left out.

    Raises:
        FileNotFoundError: when there is no reference, no image or no prediction (moved, or deleted).
        ValueError: when the arrays differ in shape.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader = recursive_find_reader_writer_by_name(evaluation.settings["reader"])()
    images = {modality: path for modality, path in case["images"].items() if Path(path).is_file()}
    predicted = {subset: evaluation.prediction_path(case["case"], subset) for subset in subsets}
    predicted = {subset: path for subset, path in predicted.items() if path.is_file()}
    if not Path(case["label"]).is_file():
        raise FileNotFoundError(f"there is no reference {case['label']}")
    if not images:
        raise FileNotFoundError(f"none of its images is there ({', '.join(map(str, case['images'].values()))})")
    if not predicted:
        raise FileNotFoundError(
            f"there is no prediction such as {evaluation.prediction_path(case['case'], subsets[0])}"
        )
    reference, properties = reader.read_seg(str(case["label"]))
    scored = np.logical_or.reduce([label_mask(reference[0], values) for values in label_values(evaluation).values()])
    shown = CaseImages(
        case=case["case"],
        images={modality: reader.read_images((str(path),))[0][0] for modality, path in images.items()},
        reference=np.where(scored, reference[0], 0),
        predictions={subset: reader.read_seg(str(path))[0][0] for subset, path in predicted.items()},
        aspect=float(properties["spacing"][1] / properties["spacing"][2]),
    )
    shapes = {array.shape for array in (shown.reference, *shown.images.values(), *shown.predictions.values())}
    if len(shapes) > 1:
        raise ValueError(f"its images, reference and predictions differ in shape: {sorted(shapes)}")
    return _crop_margins(shown)


def _crop_margins(case: CaseImages) -> CaseImages:
    """Cut off the rows and columns in which no image differs from its corner and nothing is labelled."""
    segmentations = [case.reference, *case.predictions.values()]
    shown = [(image != image.flat[0]).any(axis=0) for image in case.images.values()]
    content = np.any([*shown, *((segmentation > 0).any(axis=0) for segmentation in segmentations)], axis=0)
    if not content.any():
        return case
    rows, columns = (np.flatnonzero(content.any(axis=axis)) for axis in (1, 0))
    inside = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return replace(
        case,
        images={name: image[inside] for name, image in case.images.items()},
        reference=case.reference[inside],
        predictions={name: prediction[inside] for name, prediction in case.predictions.items()},
    )


def label_values(evaluation: Evaluation) -> dict[str, list[int]]:
    """Return the values of each label or region; `LESION` without values where they are not recorded."""
    recorded = evaluation.settings.get("label_values")
    if not recorded:
        return {LESION: []}
    return {name: [int(value) for value in np.atleast_1d(recorded[name])] for name in evaluation.labels}


def label_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label: from `COLOURS`, or from an even scale where there are more labels."""
    if len(names) <= len(COLOURS):
        return dict(zip(names, COLOURS, strict=False))
    from matplotlib import colormaps, colors

    scale = colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    return {name: colors.to_hex(colour) for name, colour in zip(names, scale, strict=True)}


def label_mask(segmentation: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return where a segmentation has one of the values; without values, where it is above zero."""
    return np.isin(segmentation, values) if len(values) else segmentation > 0


def largest_slice(segmentation: np.ndarray) -> int:
    """Return the index along the first axis of `(X, Y, Z)` with most foreground; the middle one where there is none."""
    areas = (segmentation > 0).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """Return the intensities to show as black and as white: `PERCENTILES`, widened to the corner's intensity."""
    corner = float(image.flat[0])
    body = image[image != corner]
    if not body.size:
        return corner, corner + 1.0
    low, high = np.percentile(body, PERCENTILES)
    low = min(float(low), corner)
    return low, max(float(high), low + 1e-6)


def grey(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Return intensities as 8-bit grey values."""
    low, high = window
    return (255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)


def overlay(segmentation: np.ndarray, values: Mapping[str, Sequence[int]], colours: Mapping[str, str]) -> np.ndarray:
    """Return the labels of a slice as tinted areas with an outline of `OUTLINE` pixels, small labels over large ones.

    Args:
        segmentation: label values, `(Y, X)`.
        values: by label; labels may overlap (regions).
        colours: by label.

    Returns:
        8-bit RGBA, `(Y, X, 4)`, transparent where there is background.
    """
    from matplotlib.colors import to_rgb
    from scipy.ndimage import binary_erosion

    picture = np.zeros((*segmentation.shape, 4), dtype=np.uint8)
    masks = {name: label_mask(segmentation, label) for name, label in values.items()}
    by_size = sorted(masks, key=lambda name: -np.count_nonzero(masks[name]))
    for alpha in (TINT, OPAQUE):
        for name in by_size:
            mask = masks[name]
            where = mask if alpha == TINT else mask & ~binary_erosion(mask, iterations=OUTLINE, border_value=1)
            picture[where] = (*(round(255 * part) for part in to_rgb(colours[name])), alpha)
    return picture


def enlarged(segmentation: np.ndarray, factor: int) -> np.ndarray:
    """Return a label slice with every pixel repeated, so that outlines are thin."""
    return segmentation.repeat(factor, axis=0).repeat(factor, axis=1)


def background_modality(available: Sequence[str], shown: Sequence[str], by_cost: Sequence[str]) -> str:
    """Return the modality to draw a prediction on: of those that it was made from, the costliest to lose.

    Args:
        available: modalities of the prediction's subset.
        shown: modalities that have an image.
        by_cost: all modalities, the costliest to lose first.
    """
    candidates = [name for name in by_cost if name in shown]
    return next((name for name in candidates if name in available), candidates[0])
