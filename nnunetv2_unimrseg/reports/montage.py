"""The picture of a case: modalities, reference and predictions by subset, in the slice with most foreground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.summary import adding_modalities, by_subset, cost_of_losing, headline_label
from nnunetv2_unimrseg.reports.case_images import (
    CaseImages,
    background_modality,
    enlarged,
    grey,
    label_colours,
    label_mask,
    label_values,
    largest_slice,
    overlay,
)
from nnunetv2_unimrseg.reports.plots import plain
from nnunetv2_unimrseg.reports.tables import describe_subset, one_decimal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PREDICTIONS = 12
"""Predictions in a picture; where there are more, the complete subset and some leave-one-out and single ones."""

MOST_NAMED_LABELS = 12
"""Labels that the legend names; where the slice has more, the largest."""

MOST_COLUMNS = 6
FEWEST_PIXELS = 256
"""Slices are enlarged to at least about this edge before outlines are drawn, so that these are thin."""


def shown_subsets(evaluation: Evaluation, most: int = MOST_PREDICTIONS) -> list[str]:
    """Choose all subsets where they are few; else the complete one, and the worst leave-one-out and single ones.

    Returns:
        Names, most modalities first.
    """
    subsets = evaluation.subsets
    by_size = sorted(subsets, key=lambda name: -sum(subsets[name]))
    if len(subsets) <= most:
        return by_size
    means = by_subset(evaluation)
    dice = means[means["label"] == headline_label(evaluation)].set_index("subset")["dice"]
    num_modalities = len(evaluation.modalities)
    chosen = {name for name in by_size if name == evaluation.complete}
    for size in (num_modalities - 1, 1):
        candidates = [name for name in by_size if sum(subsets[name]) == size]
        chosen |= set(sorted(candidates, key=lambda name: dice.get(name, 0.0))[: (most - 1) // 2])
    if chosen <= {evaluation.complete}:
        chosen |= set(by_size[: most - len(chosen)])
    return [name for name in by_size if name in chosen]


def modalities_by_cost(evaluation: Evaluation) -> list[str]:
    """Return the modalities, the costliest to lose (in Dice) first; in channel order where the costs are not known."""
    costs = cost_of_losing(evaluation, adding_modalities(evaluation))
    costs = costs[costs["label"] == headline_label(evaluation)].set_index("modality")["mean"].astype(float)
    return list(costs.fillna(-np.inf).sort_values(ascending=False, kind="stable").index)


def case_dice(evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """Return Dice by case and subset, the mean over the labels; NaN where no label has one."""
    means = evaluation.scores.groupby(["case", "subset"])["dice"].mean()
    return cast("dict[tuple[str, str], float]", means.to_dict())


def legend_labels(segmentation: np.ndarray, values: Mapping[str, Sequence[int]]) -> tuple[list[str], int]:
    """Choose the labels that a legend names: of those that occur, the `MOST_NAMED_LABELS` largest.

    Args:
        segmentation: label values, any shape.
        values: by label.

    Returns:
        Names in the order of `values`, and how many more labels occur.
    """
    sizes = {name: np.count_nonzero(label_mask(segmentation, of_label)) for name, of_label in values.items()}
    occurring = [name for name in values if sizes[name]]
    largest = sorted(occurring, key=lambda name: -sizes[name])[:MOST_NAMED_LABELS]
    return [name for name in occurring if name in largest], len(occurring) - len(largest)


def write_montage(
    evaluation: Evaluation,
    case: CaseImages,
    subsets: Sequence[str],
    dice: Mapping[tuple[str, str], float],
    by_cost: Sequence[str],
    path: Path,
) -> None:
    """Draw a case.

    Args:
        evaluation: the case's evaluation.
        case: with the predictions of `subsets`.
        subsets: what to show, in this order.
        dice: what `case_dice` returns.
        by_cost: what `modalities_by_cost` returns; predictions are drawn on the first of their own modalities.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure

    values, modalities = label_values(evaluation), evaluation.modalities
    colours = label_colours(list(values))
    position = largest_slice(case.reference)
    predicted = [name for name in subsets if name in case.predictions]
    num_columns = min(MOST_COLUMNS, max(len(modalities) + 1, 3))
    first_rows = math.ceil((len(modalities) + 1) / num_columns)
    num_rows = first_rows + math.ceil(len(predicted) / num_columns)
    height, width = case.reference.shape[1:]
    tall = min(max(1.8 * case.aspect * height / width, 0.9), 3.6)
    shown = np.stack([case.reference[position], *(case.predictions[name][position] for name in predicted)])
    legend = _legend(*legend_labels(shown, values), colours, 1.8 * num_columns)
    legend_rows = math.ceil(len(legend["handles"]) / legend["ncols"])
    size = 1.8 * num_columns, num_rows * (tall + 0.42) + 0.4 + 0.2 * legend_rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    windows = case.windows()
    slices = {name: grey(image[position], windows[name]) for name, image in case.images.items()}

    def segmented(axis: Axes, segmentation: np.ndarray, available: Sequence[str], title: str) -> None:
        below = background_modality(available, list(slices), by_cost)
        factor = max(1, math.ceil(FEWEST_PIXELS / max(height, width)))
        picture = overlay(enlarged(segmentation[position], factor), values, colours)
        _show(axis, slices[below], case.aspect, f"{title}\n(on {below})")
        axis.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect=case.aspect)

    for axis, name in zip(axes, modalities, strict=False):
        if name in slices:
            _show(axis, slices[name], case.aspect, name)
        else:
            axis.set_title(plain(f"{name}\n(no file)"), fontsize=7.5)
    segmented(axes[len(modalities)], case.reference, list(modalities), "reference")
    for axis, name in zip(axes[first_rows * num_columns :], predicted, strict=False):
        subset = evaluation.subsets[name]
        title = (
            f"{describe_subset(modalities, subset)}: Dice {one_decimal(100 * dice.get((case.case, name), math.nan))}"
        )
        segmented(axis, case.predictions[name], modalities.available(subset), title)
    figure.suptitle(plain(f"{case.case}, slice {position + 1} of {len(case.reference)}"), fontsize=9)
    if legend["handles"]:
        figure.legend(**legend, loc="outside lower center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150, facecolor="white")


def _show(axis: Axes, picture: np.ndarray, aspect: float, title: str) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=aspect)
    axis.set_title(plain(title), fontsize=7.5)


def _legend(names: Sequence[str], num_more: int, colours: Mapping[str, str], width: float) -> dict[str, Any]:
    """Return `handles` and `ncols` of a legend; as many columns as fit into `width` inches."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colours[name], label=plain(name)) for name in names]
    if num_more:
        handles.append(Patch(alpha=0, label=f"and {num_more} more"))
    widest = 0.55 + 0.065 * max(map(len, names), default=0)
    return {"handles": handles, "ncols": max(1, min(4, len(handles), int(width / widest)))}
