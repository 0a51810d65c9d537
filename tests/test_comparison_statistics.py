"""The statistics of paired differences, against what can be counted, enumerated or worked out by hand."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from nnunetv2_unimrseg.comparison import statistics
from nnunetv2_unimrseg.comparison.statistics import (
    bootstrap_intervals,
    holm,
    smallest_wilcoxon_p,
    wilcoxon_p,
    wins_ties_losses,
)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def bca_of_every_resample(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Efron's BCa interval of the mean from all n^n equally likely resamples, by his formulas."""
    n = len(values)
    means = np.sort(np.array(list(itertools.product(values, repeat=n))).mean(axis=1))
    below = (np.mean(means < values.mean() - 1e-12) + np.mean(means <= values.mean() + 1e-12)) / 2
    bias = stats.norm.ppf(below)
    left_out = np.array([np.delete(values, case).mean() for case in range(n)])
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = []
    for z in stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2]):
        ends.append(stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))))
    return tuple(np.quantile(means, ends))


def test_the_interval_is_that_of_all_possible_resamples():
    values = np.array([0.03, -0.01, 0.22, 0.08, 0.05, 0.11])
    for confidence in (0.8, 0.95):
        exact = bca_of_every_resample(values, confidence)
        found = bootstrap_intervals(values[None], confidence=confidence, resamples=40_000, seed=3)[0]
        assert found == pytest.approx(exact, abs=0.002)
    assert not np.allclose(exact, stats.norm.interval(0.95, values.mean(), stats.sem(values)), atol=0.004)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = rng.exponential(1.0, (400, 40)) - 1.0
    intervals = bootstrap_intervals(samples, confidence=0.9, resamples=1000, seed=0)
    share = np.mean((intervals[:, 0] < 0) & (intervals[:, 1] > 0))
    assert 0.85 < share < 0.94


def test_a_row_has_the_same_interval_alone_in_any_block_and_with_undefined_cases(monkeypatch):
    rows = np.random.default_rng(1).normal(0.1, 1, (7, 9))
    together = bootstrap_intervals(rows, resamples=500)
    with_gaps = np.insert(rows, [2, 5], np.nan, axis=1)
    np.testing.assert_allclose(bootstrap_intervals(with_gaps, resamples=500), together)
    np.testing.assert_allclose(bootstrap_intervals(rows[3:4], resamples=500)[0], together[3])
    monkeypatch.setattr(statistics, "LARGEST_BLOCK", 2 * 9 * 500)
    np.testing.assert_allclose(bootstrap_intervals(rows, resamples=500), together)


def test_the_seed_decides_the_draws():
    rows = np.random.default_rng(1).normal(0.1, 1, (1, 9))
    first, again, other = (bootstrap_intervals(rows, resamples=200, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_degenerate_rows_have_plain_intervals_and_no_warnings():
    nan = np.nan
    rows = np.array([[0.2, 0.2, 0.2], [nan, 0.4, nan], [nan, nan, nan], [0.0, 0.0, 0.0], [0.8 - 0.7, 0.7 - 0.6, 0.1]])
    expected = [[0.2, 0.2], [nan, nan], [nan, nan], [0.0, 0.0], [0.1, 0.1]]
    np.testing.assert_allclose(bootstrap_intervals(rows, resamples=200), expected)
    assert bootstrap_intervals(np.empty((0, 4))).shape == (0, 2)
    two_cases = bootstrap_intervals(np.array([[0.1, 0.5]]), resamples=200)[0]
    assert 0.1 <= two_cases[0] < two_cases[1] <= 0.5


def p_of_all_signs(differences: np.ndarray) -> float:
    """Share of the 2^n possible sign patterns whose rank sum is at least as far from its mean."""
    differences = differences[differences != 0]
    ranks = stats.rankdata(np.abs(differences))
    centre = ranks.sum() / 2
    sums = np.array(list(itertools.product((0, 1), repeat=len(ranks)))) @ ranks
    return float(np.mean(np.abs(sums - centre) >= abs(ranks[differences > 0].sum() - centre) - 1e-9))


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_equals_the_enumeration_of_all_signs_for_eight_cases(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0.4, 1, 8)
    assert wilcoxon_p(values) == pytest.approx(p_of_all_signs(values))
    with_ties = np.round(values)
    assert wilcoxon_p(with_ties) == pytest.approx(p_of_all_signs(with_ties))
    assert wilcoxon_p(np.r_[values, np.nan, 0.0]) == pytest.approx(p_of_all_signs(values))


def test_wilcoxon_of_nothing_of_no_difference_and_of_many_cases():
    assert np.isnan(wilcoxon_p(np.array([np.nan, np.nan])))
    assert wilcoxon_p(np.zeros(5)) == 1
    assert wilcoxon_p(np.full(12, 1e-12)) == 1
    assert wilcoxon_p(np.array([0.3])) == 1
    many = np.random.default_rng(0).normal(0.2, 1, 200)
    assert wilcoxon_p(many) == pytest.approx(stats.wilcoxon(many, method="asymptotic").pvalue)


@pytest.mark.parametrize("cases", (1, 2, 5, 6, 9))
def test_no_test_of_so_many_cases_gives_a_smaller_p(cases):
    assert smallest_wilcoxon_p(cases) == pytest.approx(wilcoxon_p(np.arange(1.0, cases + 1)))


def test_five_cases_cannot_reach_five_percent_and_six_can():
    assert smallest_wilcoxon_p(5) == 0.0625
    assert smallest_wilcoxon_p(6) == 0.03125


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; never smaller than the one before
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.5, 0.001])), [1, 1, 0.003])
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.03])), [0.04, np.nan, 0.04])
    np.testing.assert_allclose(holm(np.array([0.02, 0.02])), [0.04, 0.04])
    assert len(holm(np.array([]))) == 0


def test_better_depends_on_which_way_is_up():
    differences = np.array([0.1, 0.2, -0.3, 0.0, 1e-14, np.nan])
    assert wins_ties_losses(differences, higher_is_better=True) == (2, 2, 1)
    assert wins_ties_losses(differences, higher_is_better=False) == (1, 2, 2)
