"""Comparing evaluations: the Python side of `unimrseg compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_unimrseg.comparison.comparison import Comparison
from nnunetv2_unimrseg.comparison.differences import paired_differences, undefined_scores
from nnunetv2_unimrseg.comparison.matching import Matched, match
from nnunetv2_unimrseg.comparison.statistics import BOOTSTRAP_METHOD, ZERO_METHOD, smallest_wilcoxon_p
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.files import read_evaluation

FEWEST_RESAMPLES = 100
SIGNIFICANCE = 0.05
"""Differences with a smaller p are marked in tables and plots."""

FEW_CASES = 10
"""Bootstrap intervals of fewer cases are too narrow."""


def compare(
    evaluations: Sequence[Evaluation | str | Path],
    names: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare models on the cases that all of them were evaluated on, each with the first.

    ```python
    from nnunetv2_unimrseg.comparison.compare import compare

    comparison = compare(["evaluation_control", "evaluation_unimrseg"])
    dice = comparison.differences.query("metric == 'dice' and label == @comparison.headline")
    print(dice[["subset", "mean_a", "mean_b", "difference", "ci_low", "ci_high", "p_holm"]])
    ```

    The case is the unit. Each difference of means has a bias-corrected and accelerated bootstrap interval over cases
    and a two-sided Wilcoxon signed-rank test; the tests of the subsets of one pair of models, metric and label are one
    family, corrected by Holm's method, and those of the averages over subsets another.

    Args:
        evaluations: two or more, or their folders as `unimrseg evaluate` wrote them; the first is the baseline.
        names: what to call them, by default their own names.
        confidence: of the intervals, between 0 and 1.
        resamples: number of bootstrap samples, at least `FEWEST_RESAMPLES`.
        seed: of the bootstrap, 0 or more; the same seed gives the same intervals.

    Raises:
        UserError: one error for all folders without evaluations; for evaluations that cannot be compared (see
            `matching.match`); for settings out of range.
    """
    _check_settings(confidence, resamples, seed)
    read = _read(evaluations)
    matched = match(read, names)
    differences = paired_differences(matched, confidence=confidence, resamples=resamples, seed=seed)
    return Comparison(
        evaluations=tuple(read),
        matched=matched,
        differences=differences,
        method={
            "unit": "case",
            "interval": f"bootstrap over cases, {BOOTSTRAP_METHOD}",
            "confidence": confidence,
            "resamples": resamples,
            "seed": seed,
            "test": "Wilcoxon signed-rank, two-sided",
            "zero_method": ZERO_METHOD,
            "correction": "Holm, over the subsets of one pair of models, metric and label; averages apart",
            "significance": SIGNIFICANCE,
        },
        notices=(*matched.notices, *undefined_scores(matched), *_too_few(matched)),
    )


def _check_settings(confidence: float, resamples: int, seed: int) -> None:
    problems = []
    if not 0 < confidence < 1:
        problems.append(f"The confidence must lie between 0 and 1 (0.95 is usual), found {confidence}.")
    if resamples < FEWEST_RESAMPLES:
        problems.append(
            f"At least {FEWEST_RESAMPLES} bootstrap samples are needed (10000 are usual), found {resamples}."
        )
    if seed < 0:
        problems.append(f"The seed must be 0 or larger, found {seed}.")
    if problems:
        raise UserError("\n".join(problems))


def _read(evaluations: Sequence[Evaluation | str | Path]) -> list[Evaluation]:
    read, problems = [], []
    for evaluation in evaluations:
        try:
            read.append(evaluation if isinstance(evaluation, Evaluation) else read_evaluation(evaluation))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return read


def _too_few(matched: Matched) -> list[str]:
    """Return what this number of cases cannot show, however large the differences are."""
    cases, subsets = len(matched.cases), len(matched.subsets)
    if cases == 1:
        return ["There is only one case: there are no intervals, and tests say nothing."]
    smallest = smallest_wilcoxon_p(cases)
    corrected = min(1.0, smallest * subsets)
    notices = []
    if smallest > SIGNIFICANCE:
        notices.append(
            f"{cases} cases are too few for a test: Wilcoxon's smallest possible p is {smallest:.2g}, above "
            f"{SIGNIFICANCE}."
        )
    elif corrected > SIGNIFICANCE:
        notices.append(
            f"{cases} cases are too few to tell models apart in a single subset: Wilcoxon's smallest possible p, "
            f"{smallest:.2g}, is {corrected:.2g} after Holm's correction for {subsets} subsets. Look at the averages "
            "and at the intervals."
        )
    if cases < FEW_CASES:
        notices.append(f"Bootstrap intervals of {cases} cases tend to be too narrow.")
    return notices
