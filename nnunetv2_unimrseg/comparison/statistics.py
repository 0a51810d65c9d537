"""The statistics of paired differences; the case is the unit.

NaN stands for a case without a difference and is left out. Differences are rounded to `DECIMALS`, so that values that
differ only by rounding errors count as equal.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

DECIMALS = 9
"""Of differences in Dice (0 to 1) and in mm."""

BOOTSTRAP_METHOD = "BCa"
ZERO_METHOD = "wilcox"

MOST_CASES_ENUMERATED = 13
"""The largest number of cases with ties whose signs (2^13 of them) are all enumerated."""

LARGEST_BLOCK = 20_000_000
"""How many numbers are resampled at a time (160 MB)."""


def bootstrap_intervals(
    differences: np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Return a confidence interval of the mean of each row, from a bootstrap over its cases.

    The interval is bias-corrected and accelerated (BCa; Efron, JASA 1987), as `scipy.stats.bootstrap` computes it. Rows
    with the same number of cases share their draws, so the result does not depend on which rows are computed together.

    Args:
        differences: `(rows, cases)`, NaN where a case has none.
        confidence: from 0 to 1, both excluded.
        resamples: bootstrap samples a row.
        seed: of the draws.

    Returns:
        `(rows, 2)`: lower and upper bound. Both are the value where all cases differ by the same, and NaN where there
        are fewer than two cases.
    """
    differences = np.round(differences, DECIMALS)
    defined = ~np.isnan(differences)
    counts = defined.sum(axis=1)
    intervals = np.full((len(differences), 2), np.nan)
    varied = np.zeros(len(differences), dtype=bool)
    for row in np.flatnonzero(counts >= 2):
        values = differences[row, defined[row]]
        varied[row] = np.ptp(values) > 0
        intervals[row] = values[0]
    for count in np.unique(counts[varied]):
        rows = np.flatnonzero(varied & (counts == count))
        samples = np.stack([differences[row, defined[row]] for row in rows])
        block = max(1, LARGEST_BLOCK // (int(count) * max(resamples, int(count))))
        for start in range(0, len(rows), block):
            chosen = slice(start, start + block)
            intervals[rows[chosen]] = _bca(samples[chosen], confidence, resamples, seed)
    return intervals


def _bca(samples: np.ndarray, confidence: float, resamples: int, seed: int) -> np.ndarray:
    interval = stats.bootstrap(
        (samples,),
        _mean,
        axis=1,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, LARGEST_BLOCK // samples.size),
        method=BOOTSTRAP_METHOD,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.stack([interval.low, interval.high], axis=1)


def _mean(samples: np.ndarray, axis: int) -> np.ndarray:
    """Return means without the rounding errors of the order of summation, as BCa counts equal ones."""
    means: np.ndarray = np.round(samples.mean(axis=axis), DECIMALS + 3)
    return means


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test that differences are symmetric about 0.

    Cases that do not differ are left out (Wilcoxon's own treatment of zeros). The null distribution is exact for up to
    50 other cases without ties and up to 13 with ties, else approximated by the normal one (`scipy.stats.wilcoxon`).

    Args:
        differences: `(cases,)`, NaN where a case has none.

    Returns:
        A probability; 1 where no case differs, NaN where there is no case.
    """
    differences = np.round(differences[~np.isnan(differences)], DECIMALS)
    if not len(differences):
        return float("nan")
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    ranks = stats.rankdata(np.abs(differences))
    if len(np.unique(ranks)) < len(ranks) <= MOST_CASES_ENUMERATED:
        return _exact_p(ranks * np.sign(differences))
    return float(stats.wilcoxon(differences, zero_method=ZERO_METHOD, alternative="two-sided").pvalue)


def _exact_p(signed_ranks: np.ndarray) -> float:
    """Enumerate all signs as `scipy.stats.wilcoxon` does for ties, in one array."""
    return float(
        stats.permutation_test(
            (signed_ranks,), np.sum, permutation_type="samples", vectorized=True, n_resamples=2**MOST_CASES_ENUMERATED
        ).pvalue
    )


def smallest_wilcoxon_p(num_cases: int) -> float:
    """Return the smallest two-sided p that so many cases can reach: when all differ in the same direction."""
    return min(1.0, 2.0 ** (1 - num_cases))


def holm(p: np.ndarray) -> np.ndarray:
    """Correct the p of one family for their number (Holm, Scand. J. Statist. 1979).

    The corrected value of the i-th smallest of m is the largest of `(m - j + 1) * p_j` over j = 1..i, at most 1.

    Args:
        p: `(tests,)` probabilities; NaN is no test and stays NaN.

    Returns:
        `(tests,)` corrected probabilities, in the order given.
    """
    corrected = np.full(len(p), np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return corrected


def wins_ties_losses(differences: np.ndarray, *, higher_is_better: bool) -> tuple[int, int, int]:
    """Count the cases in which the second model is better, equal and worse than the first."""
    differences = np.round(differences, DECIMALS)
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    ties = int((differences == 0).sum())
    return (higher, ties, lower) if higher_is_better else (lower, ties, higher)
