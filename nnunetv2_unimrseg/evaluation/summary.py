"""Means of the scores over cases, over subsets and by number of modalities; what adding a modality changes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_unimrseg.evaluation.conventions import FAILURE_DICE
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation

MEAN_LABEL = "mean"
"""The name of the mean over the labels, where there are several."""

ALL, INCOMPLETE = "all", "incomplete"


@lru_cache(maxsize=2)
def by_subset(evaluation: Evaluation) -> pd.DataFrame:
    """Average over the cases.

    Returns:
        Rows subset x label, then subset x `MEAN_LABEL` (the mean of the labels' rows, where there are several labels).
        Columns `subset`, `num_modalities`, `label`, `n` (cases with a defined Dice), `dice`, `dice_sd` (population
        standard deviation over cases), `hd95_mm`, `asd_mm`, `volume_difference_ml` (prediction minus reference),
        `absolute_volume_difference_ml` and `failure_rate` (share of cases whose Dice is below `FAILURE_DICE`).
    """
    scores = evaluation.scores
    scores = scores.assign(
        absolute_volume_difference_ml=scores["volume_difference_ml"].abs(),
        failed=(scores["dice"] < FAILURE_DICE).where(scores["dice"].notna()).astype(float),
    )
    means = scores.groupby(["subset", "num_modalities", "label"], sort=False).agg(
        n=("dice", "count"),
        dice=("dice", "mean"),
        dice_sd=("dice", lambda values: values.std(ddof=0)),
        hd95_mm=("hd95_mm", "mean"),
        asd_mm=("asd_mm", "mean"),
        volume_difference_ml=("volume_difference_ml", "mean"),
        absolute_volume_difference_ml=("absolute_volume_difference_ml", "mean"),
        failure_rate=("failed", "mean"),
    )
    means = means.reset_index()
    if len(evaluation.labels) > 1:
        over_labels = means.groupby(["subset", "num_modalities"], sort=False).mean(numeric_only=True).reset_index()
        over_labels["n"] = means.groupby("subset", sort=False)["n"].max().to_numpy()
        means = pd.concat([means, over_labels.assign(label=MEAN_LABEL)], ignore_index=True)
    return _in_order(means, evaluation)


def labels_with_mean(evaluation: Evaluation) -> list[str]:
    """Return the labels, and `MEAN_LABEL` after them where there are several."""
    return [*evaluation.labels, MEAN_LABEL] if len(evaluation.labels) > 1 else evaluation.labels


def headline_label(evaluation: Evaluation) -> str:
    """Return the label that stands for the whole: the only one, or the mean over all."""
    return labels_with_mean(evaluation)[-1]


def _in_order(means: pd.DataFrame, evaluation: Evaluation) -> pd.DataFrame:
    subsets = {name: number for number, name in enumerate(evaluation.subsets)}
    labels = {name: number for number, name in enumerate(labels_with_mean(evaluation))}
    keys = pd.DataFrame({"subset": means["subset"].map(subsets), "label": means["label"].map(labels)})
    return means.loc[keys.sort_values(["subset", "label"]).index].reset_index(drop=True)


def over_subsets(evaluation: Evaluation, means: pd.DataFrame) -> pd.DataFrame:
    """Average over the subsets, each counting once.

    Args:
        evaluation: for its subsets.
        means: what `by_subset` returns.

    Returns:
        Rows group (`ALL`, `INCOMPLETE`) x label; columns `group`, `label`, `num_subsets`, and mean and population
        standard deviation over the subsets of each metric: `dice`, `dice_sd`, `hd95_mm`, `hd95_mm_sd`, ...
    """
    names = list(evaluation.subsets)
    groups = {ALL: names, INCOMPLETE: [name for name in names if name != evaluation.complete]}
    rows = [
        {"group": group, **_spread(rows, label)}
        for group, members in groups.items()
        for label, rows in means[means["subset"].isin(members)].groupby("label", sort=False)
    ]
    return pd.DataFrame(rows)


def by_number(means: pd.DataFrame) -> pd.DataFrame:
    """Average over the subsets of one size: rows `num_modalities` x label, columns as `over_subsets`."""
    rows = [
        {"num_modalities": int(number), **_spread(group, label)}
        for (number, label), group in means.groupby(["num_modalities", "label"], sort=False)
    ]
    return pd.DataFrame(rows)


def _spread(rows: pd.DataFrame, label: str) -> dict[str, Any]:
    spread: dict[str, Any] = {"label": label, "num_subsets": len(rows)}
    for metric in ("dice", "hd95_mm", "asd_mm", "absolute_volume_difference_ml", "failure_rate"):
        spread[metric] = rows[metric].mean()
        spread[f"{metric}_sd"] = rows[metric].std(ddof=0)
    return spread


@lru_cache(maxsize=2)
def adding_modalities(evaluation: Evaluation) -> pd.DataFrame:
    """Compare the Dice of each subset with that of the same subset and one modality more, where both were evaluated.

    Only cases with a defined Dice in both subsets count.

    Returns:
        Rows pair x label (and `MEAN_LABEL`); columns `subset`, `added`, `label`, `n`, `dice_before`, `dice_after`,
        `change` (negative: adding it lowered the result) and `cases_lowered`. Sorted by `change`, worst first.
    """
    subsets = list(evaluation.subsets.values())
    names, numbers = list(evaluation.subsets), {subset: number for number, subset in enumerate(subsets)}
    dice = _dice_by_label_case_and_subset(evaluation)
    rows = []
    for before, subset in enumerate(subsets):
        for channel, modality in enumerate(evaluation.modalities):
            after = numbers.get(tuple(there or number == channel for number, there in enumerate(subset)))
            if not subset[channel] and after is not None:
                changes = _changes(dice[..., before], dice[..., after], evaluation.labels)
                rows += [{"subset": names[before], "added": modality, **change} for change in changes]
    columns = ["subset", "added", "label", "n", "dice_before", "dice_after", "change", "cases_lowered"]
    return pd.DataFrame(rows, columns=columns).sort_values("change", kind="stable").reset_index(drop=True)


def _dice_by_label_case_and_subset(evaluation: Evaluation) -> np.ndarray:
    scores = evaluation.scores
    cases = list(dict.fromkeys(scores["case"]))
    rows = pd.MultiIndex.from_product([evaluation.labels, cases], names=["label", "case"])
    table = scores.pivot(index=["label", "case"], columns="subset", values="dice")
    table = table.reindex(index=rows, columns=list(evaluation.subsets))
    dice: np.ndarray = table.to_numpy(dtype=float)
    return dice.reshape(len(evaluation.labels), len(cases), -1)


def _changes(before: np.ndarray, after: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Compare Dice, `(labels, cases)`, of two subsets."""
    known = ~np.isnan(before + after)
    rows = [
        _change(label, *(dice[number, known[number]] for dice in (before, after)))
        for number, label in enumerate(labels)
        if known[number].any()
    ]
    if len(labels) > 1 and rows:
        counts = known.sum(axis=0)
        of_cases = [np.where(known, dice, 0).sum(axis=0)[counts > 0] / counts[counts > 0] for dice in (before, after)]
        averages = {key: float(np.mean([row[key] for row in rows])) for key in ("dice_before", "dice_after", "change")}
        rows.append({**_change(MEAN_LABEL, *of_cases), **averages})
    return rows


def _change(label: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    change = after - before
    return {
        "label": label,
        "n": len(change),
        "dice_before": float(before.mean()),
        "dice_after": float(after.mean()),
        "change": float(change.mean()),
        "cases_lowered": int((change < 0).sum()),
    }


def monotonicity(evaluation: Evaluation, changes: pd.DataFrame) -> pd.DataFrame:
    """Return how often, and by how much, adding a modality lowers the mean Dice.

    Args:
        evaluation: for its labels.
        changes: what `adding_modalities` returns.

    Returns:
        A row a label: `label`, `pairs`, `pairs_lowered`, `mean_drop` (of the lowered pairs), `largest_drop`, `cases`
        (case pairs), `cases_lowered`; drops are positive.
    """
    rows = []
    for label in labels_with_mean(evaluation):
        of_label = changes[changes["label"] == label]
        drops = -of_label["change"][of_label["change"] < 0]
        row = {"label": label, "pairs": len(of_label), "pairs_lowered": len(drops)}
        row |= {"mean_drop": drops.mean() if len(drops) else 0.0, "largest_drop": drops.max() if len(drops) else 0.0}
        rows.append({**row, "cases": int(of_label["n"].sum()), "cases_lowered": int(of_label["cases_lowered"].sum())})
    return pd.DataFrame(rows)


def cost_of_losing(evaluation: Evaluation, changes: pd.DataFrame) -> pd.DataFrame:
    """Return how much Dice is lost with each modality.

    Returns:
        Rows modality x label; columns `modality`, `label`, `from_complete` (Dice lost when only this one is missing;
        NaN where that was not evaluated), `mean` (over all pairs of subsets with and without it) and `pairs`.
    """
    without = {}
    for channel, modality in enumerate(evaluation.modalities):
        rest = tuple(number != channel for number in range(len(evaluation.modalities)))
        without[modality] = next((name for name, subset in evaluation.subsets.items() if subset == rest), None)
    rows = []
    for modality, label in itertools.product(evaluation.modalities, labels_with_mean(evaluation)):
        of_pair = changes[(changes["added"] == modality) & (changes["label"] == label)]
        complete = of_pair["change"][of_pair["subset"] == without[modality]]
        row = {"modality": modality, "label": label, "from_complete": complete.mean()}
        rows.append({**row, "mean": of_pair["change"].mean(), "pairs": len(of_pair)})
    return pd.DataFrame(rows, columns=["modality", "label", "from_complete", "mean", "pairs"])


def summary_tables(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Return every table of this module as JSON records; what is undefined is None."""
    means, changes = by_subset(evaluation), adding_modalities(evaluation)
    tables = {
        "by_subset": means,
        "over_subsets": over_subsets(evaluation, means),
        "by_number_of_modalities": by_number(means),
        "monotonicity": monotonicity(evaluation, changes),
        "adding_modalities": changes,
        "cost_of_losing": cost_of_losing(evaluation, changes),
    }
    return {name: records(table) for name, table in tables.items()}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON types, None for NaN."""
    rows: list[dict[str, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")
    return rows
