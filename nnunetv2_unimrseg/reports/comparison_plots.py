"""Plots of a comparison: the models' Dice by subset, and their differences to the baseline with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_unimrseg.comparison.comparison import Comparison
from nnunetv2_unimrseg.reports.comparison_tables import PERCENT, average_name, is_marked
from nnunetv2_unimrseg.reports.plots import DPI, draw_circles, plain, size_boundaries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Okabe and Ito's palette. Up to 42 models differ in colour or marker; up to six differ in grey prints too."""

MOST_PANELS = 4
"""Where there are more labels (with their mean), only the headline label is drawn."""

LONGEST_TITLE = 34
"""Characters in a line of a panel's title."""

ROW_HEIGHT, MOST_HEIGHT = 0.27, 40.0
"""Inches; rows are thinner where all of them together would be higher than `MOST_HEIGHT`."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a plot from top to bottom.

    Attributes:
        names: subsets, then averages.
        middle: `(rows,)`, positions of their middles; a subset's row is 1 high.
        room: `(rows,)`, their heights; an average's row is higher where subsets' rows are thinner than `ROW_HEIGHT`.
        scale: factor for the size of marks and lines, at most 1.
    """

    names: list[str]
    middle: np.ndarray
    room: np.ndarray
    scale: float

    def heights(self, number: int, num_models: int) -> np.ndarray:
        """Return the positions of one model's marks, slightly apart from those of the other models."""
        return self.middle + 0.6 * self.room * ((number + 0.5) / num_models - 0.5)


def _lay_out_rows(comparison: Comparison) -> _Rows:
    subsets = len(comparison.matched.subsets)
    names = list(comparison.rows(comparison.names[1], "dice", comparison.headline).index)
    scale = min(1.0, MOST_HEIGHT / (ROW_HEIGHT * subsets))
    room = np.array([1.0 if number < subsets else 1.0 / scale for number in range(len(names))])
    return _Rows(names, np.cumsum(room) - room / 2 - 0.5, room, scale)


def dice_by_subset(comparison: Comparison, path: Path) -> None:
    """Draw mean Dice (%) of every model by subset, the averages over subsets below."""

    def draw(axes: Axes, label: str, rows: _Rows) -> None:
        tables = [comparison.rows(model, "dice", label).loc[rows.names] for model in comparison.names[1:]]
        values = PERCENT * np.stack([tables[0]["mean_a"], *(table["mean_b"] for table in tables)])
        width = 1.5 * rows.scale
        axes.hlines(rows.middle, values.min(axis=0), values.max(axis=0), color="#b8c0c8", linewidth=width, zorder=1)
        for number, dice in enumerate(values):
            axes.plot(dice, rows.heights(number, len(values)), **_style(number, rows.scale))

    _draw(comparison, path, draw, "Dice (%)", list(enumerate(comparison.names)))


def differences(comparison: Comparison, path: Path) -> None:
    """Draw every model's difference to the baseline in Dice points, with its interval; filled where p is marked."""
    others = comparison.names[1:]

    def draw(axes: Axes, label: str, rows: _Rows) -> None:
        axes.axvline(0, color="black", linewidth=0.9, zorder=1)
        for number, model in enumerate(others):
            table = comparison.rows(model, "dice", label).loc[rows.names]
            heights = rows.heights(number, len(others))
            style = _style(number + 1, rows.scale)
            low, high = PERCENT * table["ci_low"], PERCENT * table["ci_high"]
            axes.hlines(heights, low, high, color=style["color"], linewidth=1.6 * rows.scale)
            marked = np.array([is_marked(p, comparison) for p in table["p_holm"]])
            for where, face in ((marked, style["color"]), (~marked, "white")):
                axes.plot(PERCENT * table["difference"][where], heights[where], **style, markerfacecolor=face)

    threshold = f"{comparison.method['significance']:g}"
    name = f"Dice points compared with {plain(comparison.names[0])}; filled: p < {threshold} (Holm)"
    _draw(comparison, path, draw, name, list(enumerate(others, start=1)))


def panel_labels(comparison: Comparison) -> list[str]:
    """Return the labels that the plots show, a panel each, the headline label first."""
    others = [label for label in comparison.labels if label != comparison.headline]
    return [comparison.headline, *(others if len(comparison.labels) <= MOST_PANELS else [])]


def _style(number: int, scale: float = 1.0) -> dict[str, Any]:
    """Return colour and marker of a model; the baseline is number 0."""
    return {
        "color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": "",
        "markersize": 5.5 * scale, "markeredgewidth": 1.3 * scale,
    }  # fmt: skip


def _draw(
    comparison: Comparison,
    path: Path,
    draw: Callable[[Axes, str, _Rows], None],
    axis_name: str,
    models: Sequence[tuple[int, str]],
) -> None:
    """Draw a panel a label with a row a subset, circles on the left, averages below and a legend of the models."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    labels, rows = panel_labels(comparison), _lay_out_rows(comparison)
    modalities, subsets = list(comparison.matched.modalities), comparison.matched.subsets
    averages = {name: average_name(comparison, name) for name in rows.names if name not in subsets}
    left_width = max(0.32 * len(modalities), 0.075 * max(map(len, averages.values())))
    panel_width = 4.6 if len(labels) == 1 else 3.0
    height = ROW_HEIGHT * rows.scale * rows.room.sum() + 1.6 + 0.22 * len(models)
    figure = Figure(figsize=(left_width + panel_width * len(labels), height), layout="constrained")
    axes = figure.subplots(1, len(labels) + 1, width_ratios=[left_width, *([panel_width] * len(labels))])
    for panel in axes[2:]:
        panel.sharex(axes[1])
    draw_circles(axes[0], list(subsets.values()), modalities, 46 * rows.scale**2)
    for middle, name in zip(rows.middle[len(subsets) :], averages.values(), strict=True):
        axes[0].text(len(modalities) - 0.5, middle, name, ha="right", va="center", fontsize=8)
    for label, panel in zip(labels, axes[1:], strict=True):
        draw(panel, label, rows)
        panel.set_title(textwrap.fill(plain(label), LONGEST_TITLE), fontsize=10)
        panel.set_yticks([])
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
    for panel in axes:
        panel.set_ylim(rows.room.sum() - 0.4, -0.6)
        for boundary in size_boundaries([*map(sum, subsets.values()), *([0] * len(averages))]):
            panel.axhline(boundary, color="#8a949e", linewidth=0.6, linestyle=":", zorder=0)
    figure.legend(
        handles=[Line2D([], [], **_style(number), label=plain(name)) for number, name in models],
        title=textwrap.fill(axis_name, int(14 * figure.get_figwidth())), alignment="left", loc="outside lower left",
        fontsize=9, title_fontsize=9, frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=DPI, facecolor="white")
