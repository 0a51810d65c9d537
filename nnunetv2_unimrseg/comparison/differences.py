"""Paired differences between models: by subset and label, and over all and all incomplete subsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnunetv2_unimrseg.comparison.matching import Matched
from nnunetv2_unimrseg.comparison.statistics import bootstrap_intervals, holm, wilcoxon_p, wins_ties_losses
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL

HIGHER_IS_BETTER = {"dice": True, "hd95_mm": False, "asd_mm": False}
"""The metrics that are compared, and whether a higher value is better."""

OVER_ALL = "mean over all subsets"
OVER_INCOMPLETE = "mean over incomplete subsets"
AVERAGES = (OVER_INCOMPLETE, OVER_ALL)

COLUMNS = (
    "model_a", "model_b", "metric", "label", "subset", "num_modalities", "n", "mean_a", "mean_b", "difference",
    "ci_low", "ci_high", "p_wilcoxon", "p_holm", "wins", "ties", "losses",
)  # fmt: skip


def paired_differences(matched: Matched, *, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """Compare every model with the first.

    A score counts where all models have one, so that all columns of a row, and all rows of a subset, rest on the same
    cases. Averages are taken within each case first, over the labels and then over the subsets; then the cases are
    resampled and tested as for a single subset.

    Args:
        matched: the common scores.
        confidence: of the bootstrap intervals (see `statistics.bootstrap_intervals`).
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Columns `COLUMNS`. A row for each pair of models, metric (`HIGHER_IS_BETTER`), label (`MEAN_LABEL` too, where
        there are several) and subset; after the subsets come the averages over them (`AVERAGES`). `n` is the number of
        cases; `mean_a`, `mean_b`, `difference` (b - a) and its interval are in the metric's unit; `wins` is the number
        of cases in which b is better than a. `p_holm` is corrected for the subsets of one pair, metric and label, and
        for the averages among themselves. `num_modalities` is NaN for the averages.
    """
    tables = [
        _compare_pair(matched, metric, first, second, confidence=confidence, resamples=resamples, seed=seed)
        for first, second in ((matched.names[0], name) for name in matched.names[1:])
        for metric in HIGHER_IS_BETTER
    ]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def case_scores(matched: Matched, metric: str) -> pd.DataFrame:
    """Return one score for each case and model, by label and subset; the averages over both are included.

    Returns:
        Index `label`, `subset`, `case`; one column a model; only rows in which every model has a score.
    """
    scores = matched.scores.pivot(index=["label", "subset", "case"], columns="model", values=metric)
    scores = scores[list(matched.names)].dropna()
    if len(matched.labels) > 1:
        over_labels = scores.groupby(["subset", "case"]).mean()
        scores = pd.concat([scores, pd.concat({MEAN_LABEL: over_labels}, names=["label"])])
    subset_of_row = scores.index.get_level_values("subset")
    averages = {
        name: scores[subset_of_row.isin(members)].groupby(["label", "case"]).mean()
        for name, members in averaged_subsets(matched).items()
    }
    over_subsets = pd.concat(averages, names=["subset"]).reorder_levels(["label", "subset", "case"])
    return pd.concat([scores, over_subsets])


def averaged_subsets(matched: Matched) -> dict[str, list[str]]:
    """Return the subsets of each average; `OVER_INCOMPLETE` is left out where it has no or all subsets."""
    incomplete = [name for name, subset in matched.subsets.items() if not all(subset)]
    some_incomplete = 0 < len(incomplete) < len(matched.subsets)
    return {**({OVER_INCOMPLETE: incomplete} if some_incomplete else {}), OVER_ALL: list(matched.subsets)}


def undefined_scores(matched: Matched) -> list[str]:
    """Return how many scores of each metric do not count because some model has none (see `conventions`)."""
    notices = []
    for metric in HIGHER_IS_BETTER:
        defined = matched.scores.pivot(index=["label", "subset", "case"], columns="model", values=metric).notna()
        missing = int((~defined.all(axis=1)).sum())
        if missing:
            notices.append(
                f"{missing} of {len(defined)} {metric} scores are undefined for at least one model and left out."
            )
    return notices


def _compare_pair(
    matched: Matched, metric: str, first: str, second: str, *, confidence: float, resamples: int, seed: int
) -> pd.DataFrame:
    scores = case_scores(matched, metric)
    labels = [*matched.labels, MEAN_LABEL] if len(matched.labels) > 1 else list(matched.labels)
    groups = [*matched.subsets, *averaged_subsets(matched)]
    rows = pd.MultiIndex.from_product([labels, groups], names=["label", "subset"])
    by_case = (scores[second] - scores[first]).unstack("case").reindex(rows)
    differences = by_case.to_numpy(dtype=float)
    means = scores[[first, second]].groupby(["label", "subset"]).mean().reindex(rows)
    intervals = bootstrap_intervals(differences, confidence=confidence, resamples=resamples, seed=seed)
    counts = [wins_ties_losses(row, higher_is_better=HIGHER_IS_BETTER[metric]) for row in differences]
    table = rows.to_frame(index=False).assign(
        model_a=first,
        model_b=second,
        metric=metric,
        num_modalities=[
            float(sum(matched.subsets[group])) if group in matched.subsets else np.nan for _, group in rows
        ],
        n=by_case.notna().sum(axis=1).to_numpy(),
        mean_a=means[first].to_numpy(),
        mean_b=means[second].to_numpy(),
        difference=by_case.mean(axis=1).to_numpy(),
        ci_low=intervals[:, 0],
        ci_high=intervals[:, 1],
        p_wilcoxon=[wilcoxon_p(row) for row in differences],
    )
    table[["wins", "ties", "losses"]] = np.array(counts)
    table["p_holm"] = _holm_by_family(table, list(averaged_subsets(matched)))
    return table


def _holm_by_family(table: pd.DataFrame, averages: Sequence[str]) -> pd.Series:
    families = [table["label"], table["subset"].isin(averages)]
    return table.groupby(families)["p_wilcoxon"].transform(lambda p: holm(p.to_numpy()))
