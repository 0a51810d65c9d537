"""The demo's figure: modalities, reference, predictions for complete and for incomplete input, a row a patient.

demo_figure.py EVALUATION FIGURE

EVALUATION is a folder that `unimrseg evaluate` wrote; FIGURE is the PNG to write.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.files import read_evaluation
from nnunetv2_unimrseg.evaluation.summary import by_subset, headline_label
from nnunetv2_unimrseg.reports.case_images import (
    CaseImages,
    background_modality,
    grey,
    label_colours,
    label_values,
    largest_slice,
    overlay,
    read_case_images,
)
from nnunetv2_unimrseg.reports.html import percent
from nnunetv2_unimrseg.reports.montage import case_dice, modalities_by_cost
from nnunetv2_unimrseg.reports.plots import plain
from nnunetv2_unimrseg.reports.tables import describe_subset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PATIENTS = 2
MOST_INCOMPLETE = 3
WIDTH_INCHES = 1.75
FILL = 190
"""Alpha of a label's area, of 255."""


def typical_incomplete_subsets(evaluation: Evaluation) -> list[str]:
    """Return the subset of median Dice for some numbers of modalities, most modalities first, at most three."""
    figures = by_subset(evaluation)
    figures = figures[figures["label"] == headline_label(evaluation)]
    sizes = np.arange(len(evaluation.modalities) - 1, 0, -1)
    chosen = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_INCOMPLETE)).round().astype(int))
    typical = []
    for size in sizes[chosen]:
        by_dice = figures[figures["num_modalities"] == size].sort_values("dice", na_position="first", kind="stable")
        typical.append(by_dice["subset"].iloc[len(by_dice) // 2])
    return typical


def first_patients(evaluation: Evaluation, subsets: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the first cases of which every one of the subsets was predicted.

    Raises:
        UserError: when there is none.
    """
    complete = [
        case
        for case in evaluation.settings["cases"]
        if all(evaluation.prediction_path(case["case"], name).is_file() for name in subsets)
    ]
    if not complete:
        raise UserError(f"{evaluation.folder} holds no case that was predicted with each of {', '.join(subsets)}.")
    return complete[:MOST_PATIENTS]


def draw(evaluation: Evaluation) -> Figure:
    """Draw the first unseen patients by name, each in the slice with most reference.

    Raises:
        UserError: when no patient has the predictions to show.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    subsets = [evaluation.complete, *typical_incomplete_subsets(evaluation)]
    patients = [read_case_images(evaluation, entry, subsets) for entry in first_patients(evaluation, subsets)]
    num_columns = len(evaluation.modalities) + 1 + len(subsets)
    heights = [
        WIDTH_INCHES * case.aspect * case.reference.shape[1] / case.reference.shape[2] + 0.5 for case in patients
    ]
    figure = Figure(figsize=(WIDTH_INCHES * num_columns, sum(heights) + 0.35), layout="constrained")
    grid = figure.subplots(len(patients), num_columns, squeeze=False, height_ratios=heights)
    for axes, case in zip(grid, patients, strict=True):
        _draw_patient(axes, evaluation, case, subsets)
    colours = label_colours(list(label_values(evaluation)))
    handles = [Patch(color=colour, label=plain(name)) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), num_columns), frameon=False)
    return figure


def _draw_patient(axes: Sequence[Axes], evaluation: Evaluation, case: CaseImages, subsets: Sequence[str]) -> None:
    values, modalities = label_values(evaluation), evaluation.modalities
    colours, by_cost = label_colours(list(values)), modalities_by_cost(evaluation)
    dice, windows = case_dice(evaluation), case.windows()
    position = largest_slice(case.reference)
    slices = {name: grey(image[position], windows[name]) for name, image in case.images.items()}

    def show(axis: Axes, modality: str, title: str) -> None:
        axis.imshow(slices[modality], cmap="gray", vmin=0, vmax=255, aspect=case.aspect)
        axis.set_title(plain(title), fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])

    def show_labels(axis: Axes, segmentation: np.ndarray, available: Sequence[str], title: str) -> None:
        modality = background_modality(available, list(slices), by_cost)
        show(axis, modality, title)
        picture = overlay(segmentation[position], values, colours)
        picture[..., 3] = np.where(picture[..., 3] > 0, FILL, 0)
        axis.imshow(picture, interpolation="nearest", aspect=case.aspect)
        axis.set_xlabel(plain(f"on {modality}"), fontsize=7)

    for axis, modality in zip(axes, modalities, strict=False):
        show(axis, modality, modality)
    axes[0].set_ylabel(plain(case.case), fontsize=9)
    show_labels(axes[len(modalities)], case.reference, list(modalities), "reference")
    for axis, name in zip(axes[len(modalities) + 1 :], subsets, strict=True):
        subset = evaluation.subsets[name]
        available = modalities.available(subset)
        title = f"{describe_subset(modalities, subset)}\nDice {percent(dice[case.case, name])}"
        show_labels(axis, case.predictions[name], available, title)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 after one message on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args(argv)
    try:
        draw(read_evaluation(args.evaluation)).savefig(
            args.figure, dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.1
        )
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
