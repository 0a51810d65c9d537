"""The tables of docs/benchmarks.md and its line of results, in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.reports.comparison_tables import PERCENT, points
from nnunetv2_unimrseg.reports.tables import AVAILABLE, MISSING, NOTHING, markdown_escaped

from .paired_statistics import (
    ALL,
    COMPLETE,
    INCOMPLETE,
    LEAVE_ONE_OUT,
    SINGLE,
    Benchmark,
    Run,
    VariantDice,
    differences,
    seconds,
    variant_dice,
)
from .variants import CONTROL, MAIN, STOCK, THREE_STAGES

NO_DIFFERENCE = "no difference shown"
NO_RESULTS = "No results yet.\n"

SHOWN_GROUPS = (ALL, COMPLETE, INCOMPLETE, LEAVE_ONE_OUT, SINGLE)
RATIO = "/ stock"
"""Column of a cost over stock nnU-Net's."""
NAMES = {"Dataset501_SoftTissueSarcoma": "sarcoma", "Dataset900_UniMRSegPhantom": "phantom"}
"""What the tables call a dataset; others by nnU-Net's name."""


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table, whose first `words` columns are words and the others numbers."""
    lines = [heads, [":--"] * words + ["--:"] * (len(heads) - words), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(value: float, sd: float = math.nan) -> str:
    """Return Dice in percent, and its standard deviation where there is one."""
    if math.isnan(value):
        return NOTHING
    return f"{PERCENT * value:.1f}" + ("" if math.isnan(sd) else f" ± {PERCENT * sd:.1f}")


def with_interval(row: pd.Series) -> str:
    """Return a difference in Dice points with its interval."""
    if math.isnan(row["mean"]):
        return NOTHING
    interval = "" if math.isnan(row["low"]) else f" ({points(row['low'])} to {points(row['high'])})"
    return points(row["mean"]) + interval


def verdict(row: pd.Series) -> str:
    """Say whether the interval of a difference excludes 0."""
    return "better" if row["low"] > 0 else "worse" if row["high"] < 0 else NO_DIFFERENCE


def short(benchmark: Benchmark, variant: str) -> str:
    """Return a variant's name for a table."""
    return markdown_escaped(benchmark.short(variant))


def count_runs(own: VariantDice) -> str:
    """Say how many runs there are."""
    product = f"{own.folds} x {own.seeds}"
    return f"{own.runs} ({product})" if own.runs == own.folds * own.seeds else f"{own.runs} (of {product})"


def present(benchmark: Benchmark, variants: Iterable[str]) -> list[str]:
    """Return which of the variants have results."""
    return [variant for variant in variants if variant in benchmark.variants]


def trio(benchmark: Benchmark) -> list[str]:
    """Return which of stock, control and three stages have results, where they have folds and seeds in common."""
    variants = present(benchmark, (STOCK, CONTROL, THREE_STAGES))
    return variants if variants and benchmark.runs(variants) else []


def ablated(benchmark: Benchmark) -> list[str]:
    """Return the variants that are compared with the three stages: all but these, the control and stock nnU-Net."""
    return [
        variant
        for variant in benchmark.variants
        if variant not in (STOCK, CONTROL, THREE_STAGES) and _comparable(benchmark, variant, THREE_STAGES)
    ]


def _comparable(benchmark: Benchmark, *variants: str) -> list[Run]:
    """Return the folds and seeds that all of these variants have; none where one has no results."""
    return benchmark.runs(variants) if set(variants) <= set(benchmark.variants) else []


def dataset_name(benchmark: Benchmark) -> str:
    """Return what the tables call the dataset."""
    return NAMES.get(benchmark.dataset, markdown_escaped(benchmark.dataset))


def setting(benchmark: Benchmark) -> str:
    """Return the name of a setting: plans, and the configuration where it is not the usual one, and the budget."""
    other = "" if benchmark.configuration == "3d_fullres" else f"{markdown_escaped(benchmark.configuration)}, "
    return f"{dataset_name(benchmark)} {markdown_escaped(benchmark.plans)}, {other}{benchmark.budget} passes"


def line(benchmarks: Sequence[Benchmark]) -> str:
    """Return the results in one paragraph: three stages against the control, and against stock on complete input."""
    told = []
    for baseline, group, words in (
        (CONTROL, INCOMPLETE, "Three stages minus control, mean over the incomplete subsets, Dice points:"),
        (STOCK, COMPLETE, "Three stages minus stock nnU-Net, complete input:"),
    ):
        found = []
        for benchmark in benchmarks:
            if runs := _comparable(benchmark, THREE_STAGES, baseline):
                row = differences(benchmark, THREE_STAGES, baseline, runs=runs).loc[group]
                about = [f"{row['n']:.0f} patients", _several(len(runs), "run"), verdict(row)]
                found.append(f"{setting(benchmark)}: {with_interval(row)}, {', '.join(about)}")
        if found:
            told.append(f"{words} {'; '.join(found)}.")
    return " ".join([*told, "In parentheses: 95 % bootstrap intervals over patients.\n"]) if told else NO_RESULTS


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def main_tables(benchmarks: Sequence[Benchmark]) -> str:
    """Return the Dice of the main variants, their differences to the control, and the three stages' to stock."""
    rows = []
    compared = []
    for benchmark in benchmarks:
        variants = present(benchmark, MAIN)
        for variant in variants:
            own = variant_dice(benchmark, variant)
            means = [percent(own.means[group], own.sd_over_seeds[group]) for group in SHOWN_GROUPS]
            worst = f"{percent(own.subsets.min())} ({markdown_escaped(own.subsets.idxmin())})"
            names = [setting(benchmark), short(benchmark, variant)]
            rows.append([*names, count_runs(own), str(own.patients), *means, percent(own.subsets.std(ddof=0)), worst])
        pairs = [(variant, CONTROL) for variant in variants if variant != CONTROL]
        for variant, baseline in [*pairs, (THREE_STAGES, STOCK)]:
            if runs := _comparable(benchmark, variant, baseline):
                table = differences(benchmark, variant, baseline)
                name = f"{short(benchmark, variant)} - {short(benchmark, baseline)}"
                cells = [with_interval(table.loc[group]) for group in SHOWN_GROUPS]
                compared.append([setting(benchmark), name, str(len(runs)), *cells])
    if not rows:
        return NO_RESULTS
    heads = ["setting", "Dice (%)", "runs (folds x seeds)", "patients", *SHOWN_GROUPS, "sd over subsets"]
    text = markdown([*heads, "worst subset"], rows, words=2)
    if not compared:
        return text
    heads = ["setting", "paired difference, Dice points", "runs", *SHOWN_GROUPS]
    return f"{text}\n{markdown(heads, compared, words=2)}"


def subset_tables(benchmarks: Sequence[Benchmark]) -> str:
    """Return the Dice of every subset for stock, control and three stages, and the difference of the last two.

    There is one table for the settings of a dataset that have the same modalities.
    """
    alike: dict[tuple[str, ...], list[Benchmark]] = {}
    for benchmark in filter(trio, benchmarks):
        alike.setdefault((benchmark.dataset, *benchmark.modalities), []).append(benchmark)
    return "\n".join(map(_subset_table, alike.values())) or NO_RESULTS


def _subset_table(benchmarks: Sequence[Benchmark]) -> str:
    heads = list(map(markdown_escaped, benchmarks[0].modalities))
    rows = [[AVAILABLE if available else MISSING for available in row] for row in benchmarks[0].subsets.values()]
    for benchmark in benchmarks:
        variants = trio(benchmark)
        runs = benchmark.runs(variants)
        own = [variant_dice(benchmark, variant, runs).subsets for variant in variants]
        heads.append(f"{setting(benchmark)}: {' / '.join(short(benchmark, variant) for variant in variants)}")
        for row, name in zip(rows, benchmark.subsets, strict=True):
            row.append(" / ".join(percent(values[name]) for values in own))
        if {CONTROL, THREE_STAGES} <= set(variants):
            change = differences(benchmark, THREE_STAGES, CONTROL, {name: [name] for name in benchmark.subsets}, runs)
            heads.append(f"{short(benchmark, THREE_STAGES)} - {short(benchmark, CONTROL)}")
            for row, name in zip(rows, benchmark.subsets, strict=True):
                row.append(with_interval(change.loc[name]))
    return markdown(heads, rows, words=len(benchmarks[0].modalities))


def ablation_table(benchmarks: Sequence[Benchmark]) -> str:
    """Return the differences of the other variants to the three stages that they change."""
    rows = []
    for benchmark in benchmarks:
        for variant in ablated(benchmark):
            runs = benchmark.runs([variant, THREE_STAGES])
            dice = [percent(variant_dice(benchmark, name, runs).means[INCOMPLETE]) for name in (variant, THREE_STAGES)]
            change = differences(benchmark, variant, THREE_STAGES)
            cells = [*dice, *(with_interval(change.loc[group]) for group in (INCOMPLETE, COMPLETE))]
            words = [setting(benchmark), f"`{variant}`", markdown_escaped(benchmark.about(variant))]
            rows.append([*words, verdict(change.loc[INCOMPLETE]), str(len(runs)), *cells])
    heads = [
        "setting", "variant", "what it is", "incomplete input", "runs", "its Dice, incomplete",
        "the three stages', incomplete", "difference, incomplete", "difference, complete",
    ]  # fmt: skip
    return markdown(heads, rows, words=4) if rows else NO_RESULTS


def settings_table(benchmarks: Sequence[Benchmark]) -> str:
    """Return what all runs of a setting have in common, the passes that they took and their time over the control's."""
    rows = []
    for benchmark in benchmarks:
        first = benchmark.records[0]
        passes = [sum(one["passes"] for one in record["trainings"]) for record in benchmark.records]
        control, stages = (_median_seconds(benchmark, variant) for variant in (CONTROL, THREE_STAGES))
        cells = [
            " x ".join(map(str, first["patch_size"])),
            str(first["batch_size"]),
            ", ".join(map(str, first["features_per_stage"])),
            f"{first['trainings'][0]['settings']['initial_lr']:g}",
            f"{min(passes):.0f} to {max(passes):.0f}",
            NOTHING if math.isnan(control) else f"{control:.0f}",
            NOTHING if math.isnan(stages / control) else f"{stages / control:.2f}",
        ]
        words = [
            ", ".join(benchmark.modalities),
            *(_different(record[key] for record in benchmark.records) for key in ("prediction", "device")),
            _different(_in_words(record["versions"]) for record in benchmark.records),
        ]
        rows.append([setting(benchmark), *map(markdown_escaped, words), *cells])
    heads = [
        "setting", "modalities", "arithmetic of predictions", "device", "versions", "patch, voxels", "batch",
        "features by stage", "initial learning rate", "passes of a run", "control, median seconds",
        "three stages / control, time",
    ]  # fmt: skip
    return markdown(heads, rows, words=5) if rows else NO_RESULTS


def _median_seconds(benchmark: Benchmark, variant: str) -> float:
    known = [value for value in map(seconds, benchmark.variant_records(variant)) if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _different(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


TABLES: dict[str, Callable[[Sequence[Benchmark]], str]] = {
    "line": line,
    "settings": settings_table,
    "main": main_tables,
    "subsets": subset_tables,
    "ablations": ablation_table,
}
"""Blocks of the page that are made from the results of all accuracy benchmarks."""


def cost_tables(folder: Path) -> str:
    """Return what the files of `cost.py` measured: ratios to stock nnU-Net side by side, other tables each once."""
    measured = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not measured:
        return NO_RESULTS
    origins = [
        [name, *(markdown_escaped(_in_words(one[key])) for key in ("hardware", "versions", "command"))]
        for name, one in measured.items()
    ]
    texts = [markdown(["measurement", "hardware", "versions", "command"], origins, words=4)]
    ratios: dict[str, dict[str, Mapping[str, Any]]] = {}
    others: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, one in measured.items():
        for table in one["tables"]:
            kind = ratios if RATIO in table["columns"] else others
            kind.setdefault(table["title"], {})[name] = table
    if ratios:
        texts.append(_titled("Over stock nnU-Net", ratios.values(), _side_by_side(ratios)))
    texts += [_titled(title, [tables], _stacked(tables)) for title, tables in others.items()]
    return "\n".join(texts)


def _titled(title: str, groups: Iterable[Mapping[str, Mapping[str, Any]]], body: str) -> str:
    """Return a table below its title and the notes on how it was measured, each note once."""
    notes = dict.fromkeys(one["note"] for tables in groups for one in tables.values() if one.get("note"))
    return f"{' '.join([f'**{markdown_escaped(title)}.**', *notes])}\n\n{body}"


def _side_by_side(titles: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the ratios to stock nnU-Net, a column for each measurement, with the targets that were missed."""
    names = list(dict.fromkeys(name for tables in titles.values() for name in tables))
    rows: dict[tuple[str, str], list[str]] = {}
    for title, tables in titles.items():
        for name, table in tables.items():
            for cells in table["rows"]:
                row = dict(zip(table["columns"], map(str, cells), strict=True))
                told = f" (missed: {_missed(row)})" if row.get("kept") == "no" else ""
                what = title, f"{table['columns'][0]}: {cells[0]}"
                rows.setdefault(what, [NOTHING] * len(names))[names.index(name)] = f"{row[RATIO]}{told}"
    body = ([*map(markdown_escaped, what), *cells] for what, cells in rows.items())
    return markdown(["measured", "of", *names], body, words=2)


def _missed(row: Mapping[str, str]) -> str:
    """Return the target of a row; that of memory, which is not a ratio, with the memory that is held against it."""
    if "target, MB" not in row:
        return f"target {row['target']}"
    found = row["peak, MB"] if row["reserved, MB"] == NOTHING else row["reserved, MB"]
    return f"{found} MB, target {row['target, MB']}"


def _stacked(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of several measurements below each other."""
    columns = next(iter(tables.values()))["columns"]
    rows = [[name, *map(str, row)] for name, table in tables.items() for row in table["rows"]]
    return markdown(["measurement", *columns], ([markdown_escaped(cell) for cell in row] for row in rows), words=2)


def _in_words(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
