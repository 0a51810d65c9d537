"""The plots of the accuracy benchmark: Dice by number of available modalities, and the ablations' differences."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from benchmark_statistics import COMPLETE, INCOMPLETE, Benchmark, differences, over_patients

from nnunetv2_unimrseg.reports.comparison_plots import COLOURS, MARKERS
from nnunetv2_unimrseg.reports.comparison_tables import PERCENT
from nnunetv2_unimrseg.reports.plots import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY_LINE = "#dddddd"


def dice_by_number(benchmark: Benchmark, variants: Sequence[str]) -> Figure:
    """Draw Dice (%) by the number of available modalities, with 95 % bootstrap intervals over patients."""
    figure, axes = _figure(5.2, 3.6)
    numbers = np.arange(1, len(benchmark.modalities) + 1)
    groups = {str(number): benchmark.of_size(number) for number in numbers}
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


def forest(benchmark: Benchmark, variants: Sequence[str], baseline: str) -> Figure:
    """Draw the differences of variants to a baseline in Dice points, with 95 % bootstrap intervals over patients."""
    figure, axes = _figure(6.4, 1.5 + 0.46 * len(variants))
    rows = np.arange(len(variants))
    tables = [PERCENT * differences(benchmark, variant, baseline) for variant in variants]
    axes.axvline(0, color="black", linewidth=0.9, zorder=1)
    for place, group in enumerate((INCOMPLETE, COMPLETE)):
        mean, low, high = np.array([table.loc[group, ["mean", "low", "high"]] for table in tables], dtype=float).T
        at = rows + 0.26 * (place - 0.5)
        axes.hlines(at, low, high, color=COLOURS[place], linewidth=1.6)
        axes.plot(mean, at, color=COLOURS[place], marker=MARKERS[place], linestyle="", markersize=5.5,
                  label="mean over incomplete subsets" if group == INCOMPLETE else "complete input")  # fmt: skip
    axes.set_yticks(rows, [textwrap.fill(plain(benchmark.about(variant)), 40) for variant in variants])
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.set_xlabel(f"Dice points compared with\n{plain(benchmark.short(baseline))}\n(left of 0: worse)")
    axes.grid(axis="x", color=GREY_LINE, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8.5, frameon=False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.label.set_size(9.5)
    axes.yaxis.label.set_size(9.5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
