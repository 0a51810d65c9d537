"""The demo's figure: modalities, reference, prediction for complete and for missing input, a row a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from demo_data import plain_labels, subset_case

from nnunetv2_unimrseg.folders import read_json
from nnunetv2_unimrseg.modalities import Modalities, Subset

if TYPE_CHECKING:
    from demo_report import Scores
    from matplotlib.axes import Axes

MOST_PATIENTS = 2
MOST_MISSING_EXAMPLES = 3
COLOURS = ("#ffd23f", "#ee4266", "#3bceac", "#7b6cf6", "#ff8c42", "#2ec4f0")


def typical_incomplete_subsets(scores: Scores) -> list[Subset]:
    """Return the subset of median Dice for each number of modalities, most modalities first, at most three."""
    num_modalities = len(scores.modalities)
    sizes = np.arange(num_modalities - 1, 0, -1)
    chosen = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_MISSING_EXAMPLES)).round().astype(int))
    mean = scores.by_subset[:, -1]
    subsets = []
    for size in sizes[chosen]:
        candidates = [index for index, subset in enumerate(scores.subsets) if sum(subset) == size]
        by_dice = sorted(candidates, key=lambda index: np.nan_to_num(mean[index], nan=-1.0))
        subsets.append(scores.subsets[by_dice[len(by_dice) // 2]])
    return subsets


def largest_slice(labels: np.ndarray) -> int:
    """Return the index along the first axis of `(Z, Y, X)` labels where most voxels are foreground."""
    return int((labels > 0).sum(axis=(1, 2)).argmax())


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """Return the intensities to show as black and white: percentiles 1 and 99.5 of what differs from the corner's."""
    body = image[image != image.flat[0]]
    if not body.size:
        return 0.0, 1.0
    low, high = np.percentile(body, [1, 99.5])
    return float(min(low, image.flat[0])), float(high)


def overlay(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return an RGBA picture of a label slice, `(Y, X, 4)`, transparent where there is background."""
    from matplotlib.colors import to_rgba

    picture = np.zeros((*labels.shape, 4))
    for number, value in enumerate(values):
        picture[labels == value] = to_rgba(COLOURS[number % len(COLOURS)], alpha=0.75)
    return picture


@dataclass(frozen=True)
class Shown:
    """What the figure shows of one patient: a slice of every image.

    Attributes:
        images: one a modality, `(Y, X)` each.
        windows: intensities shown as black and white, one pair a modality.
        reference: labels, `(Y, X)`.
        predictions: labels, one for each shown subset.
        aspect: height of a pixel divided by its width.
    """

    images: list[np.ndarray]
    windows: list[tuple[float, float]]
    reference: np.ndarray
    predictions: list[np.ndarray]
    aspect: float


def read_patient(
    dataset: Path, predictions: Path, patient: str, ending: str, modalities: Modalities, subsets: Sequence[Subset]
) -> Shown:
    """Read the slice with most foreground in the reference."""
    import SimpleITK

    def read(file: Path) -> np.ndarray:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))

    label_file = dataset / "labelsTs" / f"{patient}{ending}"
    reference = read(label_file)
    position = largest_slice(reference)
    images = [read(dataset / "imagesTs" / f"{patient}_{channel:04d}{ending}") for channel in range(len(modalities))]
    predicted = [read(predictions / (subset_case(patient, modalities, subset) + ending)) for subset in subsets]
    width, height = SimpleITK.ReadImage(str(label_file)).GetSpacing()[:2]
    return Shown(
        images=[image[position] for image in images],
        windows=[grey_window(image) for image in images],
        reference=reference[position],
        predictions=[labels[position] for labels in predicted],
        aspect=height / width,
    )


def write_figure(path: Path, dataset: Path, predictions: Path, scores: Scores) -> None:
    """Draw the first unseen patients by name; predictions lie on the first modality that the network was given."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    description = read_json(dataset / "dataset.json")
    labels = plain_labels(description)
    modalities = scores.modalities
    subsets = [scores.subsets[-1], *typical_incomplete_subsets(scores)]
    patients = scores.patients[:MOST_PATIENTS]
    size = (len(patients), len(modalities) + 1 + len(subsets))
    figure, axes = plt.subplots(*size, figsize=(1.75 * size[1], 2.35 * size[0] + 0.5), squeeze=False)
    for number, patient in enumerate(patients):
        shown = read_patient(dataset, predictions, patient, description["file_ending"], modalities, subsets)
        panels = [(name, channel, None) for channel, name in enumerate(modalities)]
        panels.append(("reference", 0, shown.reference))
        for subset, prediction in zip(subsets, shown.predictions, strict=True):
            given = "complete input" if all(subset) else f"only {modalities.describe(subset)}"
            value = _mean_percent(scores.dice[scores.subsets.index(subset), number, : len(labels)])
            panels.append((f"{given}\nDice {value}", subset.index(True), prediction))
        for axis, (title, channel, segmentation) in zip(axes[number], panels, strict=True):
            _draw(axis, shown, channel, segmentation, list(labels.values()))
            axis.set_title(title, fontsize=7)
        axes[number, 0].set_ylabel(patient, fontsize=8)
    handles = [
        matplotlib.patches.Patch(color=COLOURS[index % len(COLOURS)], label=name) for index, name in enumerate(labels)
    ]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(axis: Axes, shown: Shown, channel: int, segmentation: np.ndarray | None, label_values: Sequence[int]) -> None:
    low, high = shown.windows[channel]
    axis.imshow(shown.images[channel], cmap="gray", vmin=low, vmax=high, aspect=shown.aspect)
    if segmentation is not None:
        axis.imshow(overlay(segmentation, label_values), interpolation="nearest", aspect=shown.aspect)
    axis.set_xticks([])
    axis.set_yticks([])


def _mean_percent(class_values: np.ndarray) -> str:
    known = class_values[~np.isnan(class_values)]
    return f"{100 * known.mean():.1f}" if known.size else "-"
