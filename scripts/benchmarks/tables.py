"""The tables of docs/benchmarks.md and the README's headline, in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from benchmark_statistics import (
    ALL,
    COMPLETE,
    INCOMPLETE,
    LEAVE_ONE_OUT,
    SINGLE,
    Benchmark,
    Figures,
    differences,
    figures,
    seconds,
    trainings,
)
from benchmark_variants import (
    BUDGET_SETTINGS,
    CONTROL,
    EARLIER_DEFAULTS,
    MAIN,
    PARTS,
    STOCK,
    THREE_STAGES,
    VARIANTS,
    without,
)

from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.reports.comparison_tables import PERCENT, points
from nnunetv2_unimrseg.reports.tables import AVAILABLE, MISSING, NOTHING, markdown_escaped

NO_DIFFERENCE = "no difference shown"
NO_RESULTS = "No results yet.\n"

SHOWN_GROUPS = (ALL, COMPLETE, INCOMPLETE, LEAVE_ONE_OUT, SINGLE)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table, whose first `words` columns are words and the others figures."""
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


def runs_of(own: Figures) -> str:
    """Say how many runs there are."""
    product = f"{own.folds} x {own.seeds}"
    return f"{own.runs} ({product})" if own.runs == own.folds * own.seeds else f"{own.runs} (of {product})"


def present(benchmark: Benchmark, variants: Iterable[str]) -> list[str]:
    """Return which of the variants have results."""
    return [variant for variant in variants if variant in benchmark.variants]


def stages(benchmark: Benchmark) -> str:
    """Return the three stages of these results: the default, or the latest of the earlier ones that was trained."""
    return next(iter(present(benchmark, (THREE_STAGES, *EARLIER_DEFAULTS))), THREE_STAGES)


def trio(benchmark: Benchmark) -> list[str]:
    """Return which of stock, control and three stages have results, where they have folds and seeds in common."""
    variants = present(benchmark, (STOCK, CONTROL, stages(benchmark)))
    return variants if variants and benchmark.runs(variants) else []


def ablated(benchmark: Benchmark) -> dict[str, list[str]]:
    """Return the variants that are compared with three stages, the default or an earlier one, by these."""
    own = stages(benchmark)
    result: dict[str, list[str]] = {}
    for variant in benchmark.variants:
        wanted = VARIANTS[variant].baseline if variant in VARIANTS else THREE_STAGES
        is_default = variant in MAIN or variant in EARLIER_DEFAULTS
        baseline = own if is_default and wanted not in benchmark.variants else wanted
        pair = {variant, baseline}
        if len(pair) == 2 and not pair & {STOCK, CONTROL} and pair <= set(benchmark.variants) and benchmark.runs(pair):
            result.setdefault(baseline, []).append(variant)
    return result


def caption(benchmark: Benchmark) -> str:
    """Say which results follow."""
    return f"{_in_full(benchmark)}:\n\n"


def _in_full(benchmark: Benchmark) -> str:
    patch = " x ".join(map(str, benchmark.records[0]["patch_size"]))
    names = [markdown_escaped(name) for name in (benchmark.dataset, benchmark.plans, benchmark.configuration)]
    return f"{', '.join(names)}, patch {patch}, {benchmark.budget} passes a run"


def _setting(benchmark: Benchmark) -> str:
    return f"{markdown_escaped(benchmark.plans)}, {benchmark.budget} passes"


def main_tables(benchmark: Benchmark) -> str:
    """Return the figures of the main variants, their differences to the control, and those of all stages to stock."""
    variants = present(benchmark, MAIN)
    rows = []
    for variant in variants:
        own = figures(benchmark, variant)
        means = [percent(own.means[group], own.sd_over_seeds[group]) for group in SHOWN_GROUPS]
        worst = f"{percent(own.subsets.min())} ({markdown_escaped(own.subsets.idxmin())})"
        spread = percent(own.subsets.std(ddof=0))
        rows.append([short(benchmark, variant), runs_of(own), str(own.patients), *means, spread, worst])
    heads = ["Dice (%)", "runs (folds x seeds)", "patients", *SHOWN_GROUPS, "sd over subsets", "worst subset"]
    text = caption(benchmark) + markdown(heads, rows)
    pairs = [(variant, CONTROL) for variant in variants if variant != CONTROL]
    pairs += [(variant, STOCK) for variant in variants if variant in (THREE_STAGES, *EARLIER_DEFAULTS)]
    rows = []
    for variant, baseline in pairs:
        if {variant, baseline} <= set(variants) and benchmark.runs([variant, baseline]):
            table = differences(benchmark, variant, baseline)
            name = f"{short(benchmark, variant)} - {short(benchmark, baseline)}"
            cells = [with_interval(table.loc[group]) for group in SHOWN_GROUPS]
            rows.append([name, str(len(benchmark.runs([variant, baseline]))), *cells])
    if not rows:
        return text
    return f"{text}\nPaired differences in Dice points:\n\n" + markdown(["", "runs", *SHOWN_GROUPS], rows)


def subset_table(benchmark: Benchmark) -> str:
    """Return the Dice of every subset for stock, control and three stages, and the difference of the last two."""
    variants = trio(benchmark)
    if not variants:
        return ""
    runs = benchmark.runs(variants)
    own = [figures(benchmark, variant, runs).subsets for variant in variants]
    heads = [*map(markdown_escaped, benchmark.modalities), *(short(benchmark, variant) for variant in variants)]
    own_stages = stages(benchmark)
    compared = {CONTROL, own_stages} <= set(variants)
    if compared:
        heads.append(f"{short(benchmark, own_stages)} - {short(benchmark, CONTROL)}")
        change = differences(benchmark, own_stages, CONTROL, {name: [name] for name in benchmark.subsets}, runs)
    rows = []
    for name, subset in benchmark.subsets.items():
        circles = [AVAILABLE if available else MISSING for available in subset]
        last = [with_interval(change.loc[name])] if compared else []
        rows.append([*circles, *(percent(values[name]) for values in own), *last])
    return caption(benchmark) + markdown(heads, rows, words=len(benchmark.modalities))


def ablation_table(benchmark: Benchmark) -> str:
    """Return the differences of the other variants to the three stages that they change."""
    rows = []
    for baseline, variants in ablated(benchmark).items():
        for variant in variants:
            runs = benchmark.runs([variant, baseline])
            dice = [percent(figures(benchmark, name, runs).means[INCOMPLETE]) for name in (variant, baseline)]
            change = differences(benchmark, variant, baseline)
            cells = [*dice, *(with_interval(change.loc[group]) for group in (INCOMPLETE, COMPLETE))]
            words = [f"`{variant}`", markdown_escaped(benchmark.about(variant)), f"`{baseline}`"]
            rows.append([*words, verdict(change.loc[INCOMPLETE]), str(len(runs)), *cells])
    heads = [
        "variant", "what it is", "compared with", "incomplete input", "runs", "its Dice, incomplete",
        "the other's, incomplete", "difference, incomplete", "difference, complete",
    ]  # fmt: skip
    return caption(benchmark) + markdown(heads, rows, words=4) if rows else ""


def parts_table(benchmarks: Sequence[Benchmark]) -> str:
    """Return how much higher the Dice is with each part of the method than without it, in every setting."""
    compared = [
        (benchmark, baseline, variant)
        for benchmark in benchmarks
        for baseline, variants in ablated(benchmark).items()
        for variant in variants
    ]
    rows = []
    for part in PARTS:
        for benchmark, baseline, variant in compared:
            if variant in without(part):
                change = differences(benchmark, baseline, variant)
                cells = [with_interval(change.loc[group]) for group in (INCOMPLETE, COMPLETE)]
                runs = str(len(benchmark.runs([variant, baseline])))
                rows.append([part, f"`{baseline}` - `{variant}`", _setting(benchmark), runs, *cells])
    heads = ["part", "with it - without it", "setting", "runs", INCOMPLETE, COMPLETE]
    return markdown(heads, rows, words=3) if rows else NO_RESULTS


def settings_tables(benchmark: Benchmark) -> str:
    """Return what all runs have in common, and the trainings and times of every variant."""
    first = benchmark.records[0]
    rows = {
        "plans, configuration": f"{first['plans']}, {first['configuration']}",
        "modalities": ", ".join(benchmark.modalities),
        "patch": f"{' x '.join(map(str, first['patch_size']))} voxels",
        "batch": str(first["batch_size"]),
        "features by stage": ", ".join(map(str, first["features_per_stage"])),
        "budget of a run": f"{benchmark.budget} passes forward and backward of the network over a patch",
        "arithmetic of predictions": _different(record["prediction"] for record in benchmark.records),
        "device": _different(record["device"] for record in benchmark.records),
        "versions": _different(
            ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            for record in benchmark.records
        ),
    }
    text = caption(benchmark) + markdown(
        ["setting", "value"], ([name, markdown_escaped(value)] for name, value in rows.items()), words=2
    )
    times = {variant: _median_seconds(benchmark, variant) for variant in benchmark.variants}
    table = []
    for variant, time in times.items():
        chain = trainings(benchmark.records_of(variant)[0])
        ratio = time / times.get(CONTROL, math.nan)
        cells = [NOTHING if math.isnan(time) else f"{time:.0f}", NOTHING if math.isnan(ratio) else f"{ratio:.2f}"]
        epochs = ", ".join(f"{one['section']} {one['epochs']}" for one in chain)
        besides = {one["section"]: besides_defaults(one["section"], one["settings"]) for one in chain}
        changed = "; ".join(f"{section}: {_in_words(settings)}" for section, settings in besides.items() if settings)
        passes = f"{sum(one['passes'] for one in chain):g}"
        table.append([f"`{variant}`", *map(markdown_escaped, (epochs, changed)), passes, *cells])
    heads = ["variant", "trainings, epochs", "settings besides the defaults", "passes", "seconds, median", "/ control"]
    return f"{text}\n" + markdown(heads, table, words=3)


def besides_defaults(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a section that are not its defaults, without those that the budget decides."""
    defaults = asdict(getattr(UniMRSegConfig(), section))
    return {
        name: value
        for name, value in settings.items()
        if name not in BUDGET_SETTINGS and (name not in defaults or value != defaults[name])
    }


def _median_seconds(benchmark: Benchmark, variant: str) -> float:
    known = [value for value in map(seconds, benchmark.records_of(variant)) if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _different(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def headline(benchmarks: Sequence[Benchmark]) -> str:
    """Return the README's table of a dataset, each setting with the present default, and what it shows in sentences."""
    own = [benchmark for benchmark in benchmarks if trio(benchmark) and stages(benchmark) == THREE_STAGES]
    if not own:
        return NO_RESULTS
    groups = (COMPLETE, INCOMPLETE, LEAVE_ONE_OUT, SINGLE)
    heads = ["setting", "Dice (%)", *groups, "incomplete: difference to control"]
    rows = [row for benchmark in own for row in _headline_rows(benchmark, groups)]
    sentences = [f"* {_in_full(benchmark)}: {said}\n" for benchmark in own if (said := _sentence(benchmark))]
    return "\n".join(filter(None, (markdown(heads, rows, words=2), "".join(sentences))))


def _headline_rows(benchmark: Benchmark, groups: Sequence[str]) -> list[list[str]]:
    """Return a row for each main variant that has all the runs which stock, control and three stages share."""
    variants = trio(benchmark)
    runs = benchmark.runs(variants)
    rows = []
    for variant in present(benchmark, [name for name in MAIN if name not in EARLIER_DEFAULTS]):
        if len(benchmark.runs([*variants, variant])) < len(runs):
            continue
        means = figures(benchmark, variant, runs).means
        change = NOTHING
        if CONTROL in variants and variant != CONTROL:
            change = with_interval(differences(benchmark, variant, CONTROL, runs=runs).loc[INCOMPLETE])
        setting = "" if rows else _setting(benchmark)
        rows.append([setting, short(benchmark, variant), *(percent(means[group]) for group in groups), change])
    return rows


def _sentence(benchmark: Benchmark) -> str:
    """Say how the three stages compare with the control on incomplete and with stock nnU-Net on complete input."""
    incomplete = f"incomplete input (mean over the {len(benchmark.groups[INCOMPLETE])} incomplete subsets)"
    told = []
    for baseline, name, group, where in (
        (CONTROL, "the control", INCOMPLETE, incomplete),
        (STOCK, "stock nnU-Net", COMPLETE, "complete input"),
    ):
        if {baseline, THREE_STAGES} <= set(trio(benchmark)):
            row = differences(benchmark, THREE_STAGES, baseline, runs=benchmark.runs(trio(benchmark))).loc[group]
            found = verdict(row)
            same = found == NO_DIFFERENCE
            said = f"no difference to {name} is shown" if same else f"the three stages are {found} than {name}"
            told.append(f"on {where}, {said}: {with_interval(row)} Dice points")
    if not told:
        return ""
    own = figures(benchmark, THREE_STAGES, benchmark.runs(trio(benchmark)))
    scope = ", ".join(_several(*one) for one in ((own.patients, "patient"), (own.folds, "fold"), (own.seeds, "seed")))
    return f"{'; '.join(told)} (95 % bootstrap intervals over patients; {scope})."


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cost_tables(folder: Path) -> str:
    """Return the tables of all files of `benchmark_cost.py`."""
    texts = []
    for path in sorted(folder.glob("*.json")):
        measured = json.loads(path.read_text())
        origin = [measured[key] for key in ("hardware", "versions", "command") if measured.get(key)]
        texts.append("; ".join(map(_in_words, origin)) + "\n")
        for table in measured["tables"]:
            heads, *rows = ([markdown_escaped(str(cell)) for cell in row] for row in (table["columns"], *table["rows"]))
            note = f"\n{table['note']}\n" if table.get("note") else ""
            texts.append(f"**{markdown_escaped(table['title'])}**\n\n{markdown(heads, rows)}{note}")
    return "\n".join(texts) or NO_RESULTS


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
