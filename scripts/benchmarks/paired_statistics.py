"""The statistics of the accuracy benchmark: what `report.py` puts into words and plots.

A result file is one run: a variant on a fold with a seed. Dice is averaged over the labels of a patient first. The unit
is the patient: values of several seeds are averaged for each patient, then compared between variants, on the folds and
seeds that both have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_unimrseg.comparison.statistics import bootstrap_intervals
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Subset

from .variants import VARIANTS

ALL, COMPLETE, INCOMPLETE, LEAVE_ONE_OUT, SINGLE = "all subsets", "complete", "incomplete", "leave-one-out", "single"

DECIMALS = 4
"""Of stored scores: Dice to 0.01 %, distances to 0.1 micrometre."""

SAME_IN_ALL_RUNS = (
    "patch_size", "batch_size", "features_per_stage", "prediction", "modalities", "subsets",
)  # fmt: skip

Run = tuple[int, int]
"""Fold and seed."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """All results of one setting: a dataset, its plans and configuration, and a budget.

    Attributes:
        dataset, plans, configuration: nnU-Net's names.
        budget: of a run, in forward-backward passes over a patch.
        records: the result files, without scores.
        dice: index variant, fold, seed, case; a column a subset; mean Dice of the labels, 0 to 1, NaN where there is
            none.
    """

    dataset: str
    plans: str
    configuration: str
    budget: int
    records: list[dict[str, Any]]
    dice: pd.DataFrame

    @property
    def variants(self) -> list[str]:
        """Names of the variants that have results, in the order of `variants.py`; others last."""
        there = list(dict.fromkeys(record["variant"] for record in self.records))
        return [name for name in VARIANTS if name in there] + [name for name in there if name not in VARIANTS]

    @property
    def modalities(self) -> list[str]:
        """Names of the dataset's modalities."""
        return self.records[0]["modalities"]

    @property
    def subsets(self) -> dict[str, Subset]:
        """The subsets by name, fewest modalities first."""
        return {
            subset["name"]: tuple(name in subset["available"] for name in self.modalities)
            for subset in self.records[0]["subsets"]
        }

    @property
    def groups(self) -> dict[str, list[str]]:
        """Which subsets each average is of."""
        by_size = {number: self.subsets_with(number) for number in range(1, len(self.modalities) + 1)}
        complete = by_size[len(self.modalities)]
        return {
            ALL: list(self.subsets),
            COMPLETE: complete,
            INCOMPLETE: [name for name in self.subsets if name not in complete],
            LEAVE_ONE_OUT: by_size[len(self.modalities) - 1],
            SINGLE: by_size[1],
        }

    def subsets_with(self, number: int) -> list[str]:
        """Return the subsets of so many modalities."""
        return [name for name, subset in self.subsets.items() if sum(subset) == number]

    def about(self, variant: str) -> str:
        """Return what a variant is, in words."""
        return VARIANTS[variant].about if variant in VARIANTS else self.variant_records(variant)[0]["about"]

    def short(self, variant: str) -> str:
        """Return what a variant is in few words: what comes before the colon."""
        return self.about(variant).split(":")[0]

    def variant_records(self, variant: str) -> list[dict[str, Any]]:
        """Return the result files of a variant, without scores."""
        return [record for record in self.records if record["variant"] == variant]

    def runs(self, variants: Iterable[str]) -> list[Run]:
        """Return the folds and seeds that all of these variants have."""
        own = [{(record["fold"], record["seed"]) for record in self.variant_records(variant)} for variant in variants]
        return sorted(set.intersection(*own))

    def patients(self, variant: str, runs: Collection[Run] | None = None) -> pd.DataFrame:
        """Return the Dice of each patient, averaged over seeds.

        Args:
            variant: one of `variants`.
            runs: the folds and seeds that count; all by default.

        Returns:
            Index case, a column a subset.
        """
        dice = self.dice.loc[variant]
        if runs is not None:
            dice = dice[[(fold, seed) in runs for fold, seed, _ in dice.index]]
        return dice.groupby("case").mean()


def read_results(folder: Path) -> list[Benchmark]:
    """Read all result files of a folder.

    Returns:
        One benchmark for each dataset, plans, configuration and budget, those of a dataset by their budget.

    Raises:
        UserError: when runs of one of them cannot be compared, or a run is there twice.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    setting_of = itemgetter("dataset", "plans", "configuration", "budget")
    by_budget = itemgetter("dataset", "budget", "plans", "configuration")
    groups = groupby(sorted(records, key=by_budget), key=setting_of)
    return [_benchmark(setting, list(own)) for setting, own in groups]


def _benchmark(setting: tuple[str, str, str, int], records: list[dict[str, Any]]) -> Benchmark:
    _check(records)
    dice = {}
    for record in records:
        scores = _scores(record)
        by_case = scores.groupby(["case", "subset"])["dice"].mean().unstack("subset")
        dice[record["variant"], record["fold"], record["seed"]] = by_case
    subsets = [subset["name"] for subset in records[0]["subsets"]]
    table = pd.concat(dice, names=["variant", "fold", "seed"]).reindex(columns=subsets).sort_index()
    without_scores = [{key: value for key, value in record.items() if key != "scores"} for record in records]
    return Benchmark(*setting, without_scores, table)


def _scores(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return the scores of a result file, as the benchmark wrote it or compact."""
    scores = record["scores"]
    return pd.DataFrame(**scores) if isinstance(scores, dict) else pd.DataFrame(scores)


def compact(record: Mapping[str, Any]) -> str:
    """Return a result file's text with its scores as columns and data, rounded to `DECIMALS`, without white space."""
    scores = _scores(record).round(DECIMALS)
    small = {key: value for key, value in json.loads(scores.to_json(orient="split")).items() if key != "index"}
    return json.dumps({**record, "scores": small}, separators=(",", ":")) + "\n"


def _check(records: list[dict[str, Any]]) -> None:
    """Refuse runs that cannot be compared with each other."""
    seen: dict[Any, dict[str, Any]] = {}
    for record in records:
        name = f"{record['dataset']}, {record['variant']}, fold {record['fold']}, seed {record['seed']}"
        if seen.setdefault((record["variant"], record["fold"], record["seed"]), record) is not record:
            raise UserError(f"There are two results of the same run: {name}, {record['budget']} passes.")
        for key in SAME_IN_ALL_RUNS:
            if record[key] != records[0][key]:
                raise UserError(f"{name}: '{key}' is {record[key]!r}, but {records[0][key]!r} in {_name(records[0])}.")
        rates = [one["trainings"][0]["settings"]["initial_lr"] for one in (record, records[0])]
        if rates[0] != rates[1]:
            raise UserError(f"{name}: its learning rate is {rates[0]:g}, but {rates[1]:g} in {_name(records[0])}.")
        first = seen.setdefault(record["variant"], record)
        if trainings(record) != trainings(first):
            raise UserError(f"{name}: its trainings have other settings than in {_name(first)}.")


def _name(record: Mapping[str, Any]) -> str:
    return f"{record['variant']}, fold {record['fold']}, seed {record['seed']}"


def trainings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was trained: section, settings, passes and epochs of each training."""
    return [{key: one[key] for key in ("section", "settings", "passes", "epochs")} for one in record["trainings"]]


def seconds(record: Mapping[str, Any]) -> float:
    """Return the seconds of a run's trainings; of an interrupted one from the epochs that were timed."""
    return sum(
        one["seconds"] * one["epochs"] / one["epochs_of_these_seconds"] if one["epochs_of_these_seconds"] else np.nan
        for one in record["trainings"]
    )


@dataclass(frozen=True, eq=False)
class VariantDice:
    """Dice (0 to 1) of one variant.

    Attributes:
        runs, folds, seeds, patients: how many there are.
        subsets: mean over the patients that have it, by subset.
        means: mean of `subsets` over each of the groups.
        sd_over_seeds: sample standard deviation of `means` between seeds, NaN for fewer than two. Only seeds count that
            have every fold.
    """

    runs: int
    folds: int
    seeds: int
    patients: int
    subsets: pd.Series
    means: pd.Series
    sd_over_seeds: pd.Series


def variant_dice(benchmark: Benchmark, variant: str, runs: Collection[Run] | None = None) -> VariantDice:
    """Return the Dice of a variant on the given folds and seeds (default: on all it has)."""
    runs = benchmark.runs([variant]) if runs is None else runs
    folds, seeds = ({run[position] for run in runs} for position in (0, 1))
    patients = benchmark.patients(variant, runs)
    whole = [seed for seed in sorted(seeds) if all((fold, seed) in runs for fold in folds)]
    by_seed = pd.DataFrame(
        [
            _group_means(benchmark, benchmark.patients(variant, [(fold, seed) for fold in folds]).mean())
            for seed in whole
        ],
        columns=list(benchmark.groups),
    )
    subsets = patients.mean()
    means = _group_means(benchmark, subsets)
    return VariantDice(len(runs), len(folds), len(seeds), len(patients), subsets, means, by_seed.std())


def _group_means(benchmark: Benchmark, subsets: pd.Series) -> pd.Series:
    return pd.Series({name: subsets[members].mean() for name, members in benchmark.groups.items()}, dtype=float)


def differences(
    benchmark: Benchmark,
    variant: str,
    baseline: str,
    groups: Mapping[str, Sequence[str]] | None = None,
    runs: Collection[Run] | None = None,
) -> pd.DataFrame:
    """Return how much higher a variant's Dice is than a baseline's, paired by patient.

    Args:
        benchmark: the results.
        variant: what is compared.
        baseline: with what.
        groups: the subsets whose mean in each patient is compared, by name; those of the benchmark by default.
        runs: the folds and seeds that count; those that both have by default.

    Returns:
        A row a group, columns as `over_patients`.
    """
    runs = benchmark.runs([variant, baseline]) if runs is None else runs
    change = benchmark.patients(variant, runs) - benchmark.patients(baseline, runs)
    return over_patients(change, benchmark.groups if groups is None else groups)


def over_patients(values: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Average each patient's values over the subsets of each group that it has, then over patients.

    Args:
        values: index case, a column a subset.
        groups: subsets by the name of the group.

    Returns:
        A row a group; columns `n` (patients), `mean`, and `low`, `high`: 95 % bootstrap interval over patients.
    """
    of_groups = pd.DataFrame({name: values[list(members)].mean(axis=1) for name, members in groups.items()}).T
    intervals = bootstrap_intervals(of_groups.to_numpy(dtype=float))
    columns = {"n": of_groups.notna().sum(axis=1), "mean": of_groups.mean(axis=1)}
    return pd.DataFrame({**columns, "low": intervals[:, 0], "high": intervals[:, 1]}, index=list(groups))
