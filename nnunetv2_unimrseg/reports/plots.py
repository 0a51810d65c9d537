"""Plots of an evaluation: Dice by subset, Dice by number of modalities, the cost of losing each modality.

Colours come from cividis and from Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nnunetv2_unimrseg.evaluation import summary
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL, adding_modalities, by_subset, labels_with_mean
from nnunetv2_unimrseg.reports.tables import one_decimal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#6b7580"
MOST_ANNOTATED_ROWS = 127
"""A heat map of more subsets than this (more than seven modalities) has no numbers in its cells."""

MOST_PANEL_COLUMNS = 3


def heat_map(evaluation: Evaluation, path: Path) -> None:
    """Draw mean Dice (%) of every subset and label; circles on the left show the available modalities."""
    from matplotlib.figure import Figure

    labels, subsets, modalities = labels_with_mean(evaluation), evaluation.subsets, list(evaluation.modalities)
    dice = by_subset(evaluation).pivot(index="subset", columns="label", values="dice")
    percent = 100 * dice.reindex(index=list(subsets), columns=labels).to_numpy(dtype=float)
    annotated = len(subsets) <= MOST_ANNOTATED_ROWS
    row_height = 0.25 if annotated else max(30 / len(subsets), 0.03)
    head = 0.25 + 0.075 * max(map(len, [*modalities, *labels]))
    widths = [0.32 * len(modalities), 0.75 * len(labels)]
    height = row_height * len(subsets)
    figure = Figure(figsize=(sum(widths) + 1.6, height + head + 0.2))
    total_width, total_height = figure.get_size_inches()
    bottom, tall = 0.1 / total_height, height / total_height
    left = figure.add_axes((0.15 / total_width, bottom, widths[0] / total_width, tall))
    right = figure.add_axes(((0.3 + widths[0]) / total_width, bottom, widths[1] / total_width, tall))
    draw_circles(left, list(subsets.values()), modalities, 46 if annotated else 46 * (row_height / 0.25) ** 2)
    limits = _round_limits(percent)
    image = right.imshow(percent, cmap="cividis", aspect="auto", vmin=limits[0], vmax=limits[1])
    _column_heads(right, labels)
    if annotated:
        _annotate(right, percent, limits)
    for boundary in size_boundaries([sum(subset) for subset in subsets.values()]):
        right.axhline(boundary, color="white", linewidth=2)
    bar_height = min(tall, 2.5 / total_height)
    bar = figure.add_axes(
        ((0.45 + sum(widths)) / total_width, bottom + tall - bar_height, 0.12 / total_width, bar_height)
    )
    figure.colorbar(image, cax=bar).set_label("Dice (%)", fontsize=8)
    bar.tick_params(labelsize=7)
    _save(figure, path)


def draw_circles(axes: Axes, subsets: Sequence[Sequence[bool]], modalities: Sequence[str], size: float) -> None:
    """Draw a row a subset, one circle a modality, filled where it is available; `size` as matplotlib's `scatter`."""
    rows, columns = np.indices((len(subsets), len(modalities)))
    available = np.array(subsets, dtype=bool)
    for there, face in ((True, "black"), (False, "white")):
        where = available == there
        axes.scatter(columns[where], rows[where], s=size, facecolor=face, edgecolor="black", linewidth=0.6)
    axes.set_xlim(-0.5, len(modalities) - 0.5)
    axes.set_ylim(len(subsets) - 0.5, -0.5)
    _column_heads(axes, modalities)
    axes.set_frame_on(False)


def _column_heads(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=60, ha="left", rotation_mode="anchor")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelsize=8)
    axes.set_yticks([])


def _round_limits(percent: np.ndarray) -> tuple[float, float]:
    """Return the tens around the values: differences show, and two plots are likely to have the same scale."""
    if np.isnan(percent).all():
        return 0.0, 100.0
    low, high = 10 * math.floor(np.nanmin(percent) / 10), 10 * math.ceil(np.nanmax(percent) / 10)
    return float(low), float(max(high, low + 10))


def _annotate(axes: Axes, percent: np.ndarray, limits: tuple[float, float]) -> None:
    for (row, column), value in np.ndenumerate(percent):
        dark = (value - limits[0]) / (limits[1] - limits[0]) < 0.5
        colour = "black" if np.isnan(value) or not dark else "white"
        axes.text(column, row, one_decimal(value), ha="center", va="center", fontsize=8, color=colour)


def size_boundaries(sizes: Sequence[int]) -> list[float]:
    """Return the positions between rows of subsets that differ in size."""
    return [row - 0.5 for row in range(1, len(sizes)) if sizes[row] != sizes[row - 1]]


def boxes_by_number(evaluation: Evaluation, path: Path) -> None:
    """Draw, for each label, Dice (%) of single cases by the number of available modalities.

    A box shows the quartiles over every case with every subset of that size, its line the median, its whiskers the
    furthest values within 1.5 interquartile ranges; the diamond is the mean.
    """
    scores = _with_mean_label(evaluation)
    labels = labels_with_mean(evaluation)
    numbers = sorted(scores["num_modalities"].unique())
    figure, panels = _panels(labels, width=max(2.6, 0.62 * len(numbers) + 0.8), height=3.0)
    for label, axes in panels:
        rows = scores[scores["label"] == label]
        values = [100 * rows["dice"][rows["num_modalities"] == number].dropna() for number in numbers]
        axes.boxplot(
            values, positions=numbers, widths=0.6, patch_artist=True, showmeans=True,
            boxprops={"facecolor": "#cfe1f5", "edgecolor": BLUE}, medianprops={"color": BLUE, "linewidth": 2},
            whiskerprops={"color": BLUE}, capprops={"color": BLUE},
            flierprops={"marker": "o", "markersize": 3, "markeredgecolor": GREY, "alpha": 0.6},
            meanprops={"marker": "D", "markerfacecolor": ORANGE, "markeredgecolor": "black", "markersize": 5},
        )  # fmt: skip
        axes.set_xticks(numbers, [f"{number}\nn={len(group)}" for number, group in zip(numbers, values, strict=True)])
        axes.set_ylim(-3, 103)
        axes.set_xlabel("available modalities", fontsize=9)
        axes.set_ylabel("Dice (%)", fontsize=9)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    _save(figure, path)


def _with_mean_label(evaluation: Evaluation) -> pd.DataFrame:
    scores: pd.DataFrame = evaluation.scores
    if len(evaluation.labels) > 1:
        means = scores.groupby(["case", "subset", "num_modalities"], sort=False)["dice"].mean().reset_index()
        scores = pd.concat([scores, means.assign(label=MEAN_LABEL)], ignore_index=True)
    return scores


def cost_of_losing(evaluation: Evaluation, path: Path) -> None:
    """Draw, for each label, how many points of Dice (%) losing each modality costs.

    Two bars a modality: lost from the complete input, and the mean over all pairs of subsets with and without it.
    """
    costs = summary.cost_of_losing(evaluation, adding_modalities(evaluation))
    modalities = list(evaluation.modalities)
    longest = max(map(len, modalities))
    figure, panels = _panels(
        labels_with_mean(evaluation), 2.9 + 0.07 * longest, 0.9 + 0.42 * len(modalities), legend=True
    )
    rows = np.arange(len(modalities))
    all_points = 100 * costs[["from_complete", "mean"]].to_numpy(dtype=float).ravel()
    low, high = np.nanmin([*all_points, 0.0]), np.nanmax([*all_points, 1.0])
    room = 0.18 * (high - low)
    for label, axes in panels:
        costs_of_label = costs[costs["label"] == label].set_index("modality").loc[modalities]
        for column, colour, shift, name in (
            ("from_complete", BLUE, -0.2, "lost from the complete input"),
            ("mean", ORANGE, 0.2, "mean over all subsets with and without it"),
        ):
            points = 100 * costs_of_label[column].to_numpy(dtype=float)
            axes.barh(rows + shift, np.nan_to_num(points), height=0.36, color=colour, label=name)
            for row, value in zip(rows + shift, points, strict=True):
                place = 0.0 if np.isnan(value) else value
                axes.annotate(
                    one_decimal(value), (place, row), (3 if place >= 0 else -3, 0), textcoords="offset points",
                    va="center", ha="left" if place >= 0 else "right", fontsize=7.5,
                )  # fmt: skip
        axes.set_xlim(low - (room if low < 0 else 0), high + room)
        axes.set_yticks(rows, [plain(name) for name in modalities])
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("Dice points lost", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )
    _save(figure, path)


def _panels(
    labels: Sequence[str], width: float, height: float, legend: bool = False
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """Return a figure with one panel a label, sizes in inches; `legend` leaves room below for two columns."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(len(labels), MOST_PANEL_COLUMNS) if len(labels) != 4 else 2
    rows = math.ceil(len(labels) / columns)
    size = (max(columns * width, 5.0 if legend else 0.0), rows * height + 0.3 * legend)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[len(labels) :]:
        unused.set_visible(False)
    panels = list(zip(labels, axes[: len(labels)], strict=True))
    for label, axis in panels:
        axis.set_title(plain(label), fontsize=10)
        axis.tick_params(labelsize=8)
    return figure, panels


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)


def plain(name: str) -> str:
    """Return a name that matplotlib prints literally, dollar signs included."""
    return name.replace("$", r"\$")
