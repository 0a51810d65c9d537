"""Raw scores of one segmentation: voxel counts and surface distances of each label or region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask

from nnunetv2_unimrseg.evaluation.conventions import with_convention

LabelValue = int | tuple[int, ...]
MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class RawScores:
    """Counts and distances of one label of one case, before any convention about emptiness.

    Attributes:
        tp, fp, fn: voxels; voxels of the ignore label count nowhere.
        hd95_mm, asd_mm: see `surface_distances`; NaN where reference or prediction is empty.
        voxel_ml: volume of a voxel (for 2D images its area in mm^2, divided by 1000).
        diagonal_mm: of the image.
    """

    tp: int
    fp: int
    fn: int
    hd95_mm: float
    asd_mm: float
    voxel_ml: float
    diagonal_mm: float

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), as nnU-Net's; NaN where both are empty."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else math.nan

    def row(self, empty: str) -> dict[str, float]:
        """Return the metrics and volumes of `evaluation.COLUMNS` under a convention for empty labels."""
        reference, prediction = (self.tp + self.fn) * self.voxel_ml, (self.tp + self.fp) * self.voxel_ml
        dice, hd95, asd, change = with_convention(
            self.dice, self.hd95_mm, self.asd_mm, prediction - reference,
            reference=reference, prediction=prediction, diagonal_mm=self.diagonal_mm, empty=empty,
        )  # fmt: skip
        return {
            "dice": dice,
            "hd95_mm": hd95,
            "asd_mm": asd,
            "volume_difference_ml": change,
            "reference_ml": reference,
            "prediction_ml": prediction,
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON types, None for NaN."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> RawScores:
        """Read what `to_json` returned."""
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in entries.items()}
        return cls(**values)


def score_segmentation(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Mapping[str, LabelValue],
    spacing: Sequence[float],
    ignore_label: int | None = None,
) -> dict[str, RawScores]:
    """Score each label or region of one case.

    Args:
        reference, prediction: label values, (X, Y, Z), on the same grid.
        labels: name -> label value, or the values of a region.
        spacing: mm along each axis of the arrays.
        ignore_label: voxels with this value in the reference count nowhere; None for no such label.
    """
    ignored = None if ignore_label is None else reference == ignore_label
    axes = [axis for axis, size in enumerate(reference.shape) if size > 1] or [0]
    millimetres = [float(spacing[axis]) for axis in axes]
    voxel_ml = math.prod(millimetres) / MM3_PER_ML
    diagonal = math.hypot(*(reference.shape[axis] * step for axis, step in zip(axes, millimetres, strict=True)))
    scores = {}
    for name, value in labels.items():
        masks = [region_or_label_to_mask(image, value) for image in (reference, prediction)]
        tp, fp, fn, _ = map(int, compute_tp_fp_fn_tn(*masks, ignored))
        if ignored is not None:
            masks = [mask & ~ignored for mask in masks]
        truth, found = (mask.reshape([reference.shape[axis] for axis in axes]) for mask in masks)
        hd95, asd = surface_distances(truth, found, millimetres)
        scores[name] = RawScores(tp, fp, fn, hd95, asd, voxel_ml, diagonal)
    return scores


def surface_distances(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Return HD95 and the average symmetric surface distance of two masks, both in mm.

    With d(a, B) the distance of a surface voxel a to the nearest surface voxel of B (surface: mask voxels of which a
    face neighbour is outside), HD95 is the larger of the 95th percentiles of d(a, B) over a in A and of d(b, A) over b
    in B, and the average surface distance the mean of all these distances together. Computed by MONAI.

    Args:
        reference, prediction: booleans, (X, Y[, Z]), no axis of size 1.
        spacing: mm along each axis.

    Returns:
        NaN for both where a mask is empty.
    """
    if not (reference.any() and prediction.any()):
        return math.nan, math.nan
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    edges = [np.asarray(edge) for edge in get_mask_edges(prediction, reference)]
    distances = [
        np.asarray(get_surface_distance(one, other, spacing=list(spacing)), dtype=np.float64)
        for one, other in (edges, edges[::-1])
    ]
    return max(float(np.percentile(each, 95)) for each in distances), float(np.concatenate(distances).mean())
