"""The plot of the accuracy benchmark: Dice by number of available modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_unimrseg.reports.comparison_plots import COLOURS, MARKERS
from nnunetv2_unimrseg.reports.comparison_tables import PERCENT
from nnunetv2_unimrseg.reports.plots import plain

from .paired_statistics import Benchmark, over_patients

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY_LINE = "#dddddd"


def dice_by_number(benchmark: Benchmark, variants: Sequence[str]) -> Figure:
    """Draw Dice (%) by the number of available modalities, with 95 % bootstrap intervals over patients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.label.set_size(9.5)
    axes.yaxis.label.set_size(9.5)
    axes.spines[["top", "right"]].set_visible(False)
    numbers = np.arange(1, len(benchmark.modalities) + 1)
    groups = {str(number): benchmark.subsets_with(number) for number in numbers}
    runs = benchmark.runs(variants)
    for place, variant in enumerate(variants):
        table = PERCENT * over_patients(benchmark.patients(variant, runs), groups)[["mean", "low", "high"]]
        at = numbers + 0.08 * (place - (len(variants) - 1) / 2)
        colour = COLOURS[place % len(COLOURS)]
        axes.vlines(at, table["low"], table["high"], color=colour, linewidth=1.6)
        axes.plot(at, table["mean"], color=colour, marker=MARKERS[place % len(MARKERS)], markersize=6, linewidth=1,
                  label=plain(benchmark.about(variant)))  # fmt: skip
    names = [f"{number} (complete)" if number == numbers[-1] else str(number) for number in numbers]
    axes.set_xticks(numbers, names)
    axes.set_xlim(0.6, len(numbers) + 0.4)
    axes.set_xlabel("available modalities")
    axes.set_ylabel("Dice (%)")
    axes.grid(axis="y", color=GREY_LINE, linewidth=0.6)
    figure.legend(loc="outside lower left", fontsize=8.5, frameon=False)
    return figure
