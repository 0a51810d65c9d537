"""The data of the viewer in the HTML report: slices of some cases, as small pictures inside the page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.reports.case_images import (
    CaseImages,
    background_modality,
    enlarged,
    grey,
    label_colours,
    label_values,
    largest_slice,
    overlay,
)
from nnunetv2_unimrseg.reports.html import data_uri
from nnunetv2_unimrseg.reports.tables import describe_subset

MOST_BYTES = 12_000_000
"""For all pictures of a report's viewer; the whole report stays below about 15 MB."""

MOST_CASES = 3
"""Cases in the viewer: those of worst, median and best mean Dice."""

MOST_SLICES = 24
"""Of a case, spread evenly over the slices in which its reference has foreground."""

MOST_PIXELS = 320
"""Longest edge of a picture; of larger slices, every second (third, ...) pixel is shown."""

OVERLAY_PIXELS = 480
"""Small label slices are enlarged to about this edge, so that outlines are thin."""

JPEG_QUALITY = 80


def viewer_cases(evaluation: Evaluation) -> dict[str, str]:
    """Choose the cases of worst, median and best mean Dice over all subsets and labels: their names and why."""
    means = evaluation.scores.groupby("case", sort=False)["dice"].mean().dropna().sort_values(kind="stable")
    if means.empty:
        return {}
    chosen = {means.index[0]: "worst", means.index[-1]: "best", means.index[len(means) // 2]: "median"}
    return {case: chosen[case] for case in means.index if case in chosen}


def shown_slices(reference: np.ndarray, most: int = MOST_SLICES) -> list[int]:
    """Return indices along the first axis of `(X, Y, Z)`: of slices with foreground, the one with most among them."""
    labelled = np.flatnonzero((reference > 0).any(axis=(1, 2)))
    if not labelled.size:
        labelled = np.arange(len(reference))
    spread = labelled[np.linspace(0, len(labelled) - 1, min(most, len(labelled))).round().astype(int)]
    nearest = np.abs(spread - largest_slice(reference)).argmin()
    spread[nearest] = largest_slice(reference)
    return sorted({int(index) for index in spread})


def viewer_case(
    evaluation: Evaluation,
    case: CaseImages,
    subsets: Sequence[str],
    dice: Mapping[tuple[str, str], float],
    by_cost: Sequence[str],
    most_bytes: float,
) -> dict[str, Any]:
    """Return a case as the viewer's script needs it, JSON types only.

    Args:
        evaluation: the case's evaluation.
        case: with the predictions of `subsets`.
        subsets: names, in the order of the viewer's list.
        dice: mean over the labels by case and subset.
        by_cost: modalities, the costliest to lose first.
        most_bytes: for all pictures; every second slice is left out until they fit.

    Returns:
        `case`, `num_slices`, `slices` (indices), `start` (position in `slices` of the largest reference), `ratio`
        (width by height in mm), and pictures, one a slice: `reference`, `images` by modality, and `subsets` by name,
        these with `words`, `dice` (percent), `available` and `background` (the modality to draw them on).
    """
    values = label_values(evaluation)
    colours = label_colours(list(values))
    windows = case.windows()
    step = max(1, math.ceil(max(case.reference.shape[1:]) / MOST_PIXELS))
    factor = max(1, round(OVERLAY_PIXELS / max(case.reference.shape[1:])))

    def image_slice(modality: str, index: int) -> str:
        return _encode(grey(case.images[modality][index, ::step, ::step], windows[modality]), "jpeg")

    def outlines(segmentation: np.ndarray, index: int) -> str:
        return _encode(overlay(enlarged(segmentation[index, ::step, ::step], factor), values, colours), "png")

    frames: dict[int, dict[str, Any]] = {
        index: {
            "images": {modality: image_slice(modality, index) for modality in case.images},
            "reference": outlines(case.reference, index),
            "predictions": {
                name: outlines(case.predictions[name], index) for name in subsets if name in case.predictions
            },
        }
        for index in shown_slices(case.reference)
    }
    slices = _fit_slices(frames, largest_slice(case.reference), most_bytes)
    available = {name: evaluation.modalities.available(evaluation.subsets[name]) for name in subsets}
    height, width = case.reference.shape[1:]
    return {
        "case": case.case,
        "num_slices": len(case.reference),
        "slices": slices,
        "start": slices.index(largest_slice(case.reference)),
        "ratio": width / (height * case.aspect),
        "images": {modality: [frames[index]["images"][modality] for index in slices] for modality in case.images},
        "reference": [frames[index]["reference"] for index in slices],
        "subsets": {
            name: {
                "words": describe_subset(evaluation.modalities, evaluation.subsets[name]),
                "dice": _percent(dice.get((case.case, name), math.nan)),
                "available": available[name],
                "background": background_modality(available[name], list(case.images), by_cost),
                "pictures": [frames[index]["predictions"][name] for index in slices],
            }
            for name in subsets
            if name in case.predictions
        },
    }


def _fit_slices(frames: Mapping[int, Mapping[str, Any]], always: int, most_bytes: float) -> list[int]:
    """Leave out every second slice until the pictures fit; slice `always` stays."""

    def size(index: int) -> int:
        frame = frames[index]
        return len(frame["reference"]) + sum(map(len, (*frame["images"].values(), *frame["predictions"].values())))

    slices = list(frames)
    while len(slices) > 1 and sum(map(size, slices)) > most_bytes:
        parity = slices.index(always) % 2
        slices = slices[parity::2]
    return slices


def _encode(picture: np.ndarray, kind: str) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "jpeg" else {}
    imsave(buffer, picture, format=kind, cmap="gray", vmin=0, vmax=255, pil_kwargs=options)
    return data_uri(buffer.getvalue())


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 1)
