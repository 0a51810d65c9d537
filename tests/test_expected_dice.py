"""The figures of what Dice to expect, and where a subset is called weak."""

from __future__ import annotations

import evaluations
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunetv2_unimrseg.evaluation.expected_dice import expected_of_subset
from nnunetv2_unimrseg.evaluation.in_checkpoint import StoredEvaluation
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL, by_subset


def stored(scores: dict[str, dict[str, list[float]]], modalities=("A", "B")) -> StoredEvaluation:
    """Return an evaluation with these Dice by subset and label, one value a case."""
    rows = [
        (f"case_{number}", "0", subset, label, dice, 0.0)
        for subset, labels in scores.items()
        for label, values in labels.items()
        for number, dice in enumerate(values)
    ]
    return StoredEvaluation(
        kind="validation",
        weights_sha256={"0": "0" * 64},
        modalities=list(modalities),
        labels=list(next(iter(scores.values()))),
        subsets=[{"name": name, "available": name.split("+")} for name in scores],
        conventions={"empty": "brats", "failure_dice": 0.1},
        prediction={},
        versions={},
        scores=pd.DataFrame(rows, columns=["case", "fold", "subset", "label", "dice", "hd95_mm"]),
    )


def figures(evaluation: StoredEvaluation, *available: str) -> pd.DataFrame:
    return expected_of_subset(evaluation, available).set_index("label")


def test_the_figures_are_numpys_and_scipys():
    rng = np.random.default_rng(3)
    whole, core = rng.uniform(0, 1, 40), rng.uniform(0, 0.5, 40)
    found = figures(stored({"A": {"whole": list(whole), "core": list(core)}}), "A")
    means = {"whole": whole, "core": core, MEAN_LABEL: (whole + core) / 2}
    assert list(found.index) == list(means)
    for label, values in means.items():
        row = found.loc[label]
        assert row["n"] == 40 and row["dice"] == pytest.approx(values.mean())
        assert [row["dice_p05"], row["dice_p95"]] == pytest.approx(np.percentile(values, [5, 95]))
        interval = stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=20000, rng=1
        ).confidence_interval
        assert [row["dice_low"], row["dice_high"]] == pytest.approx(interval, abs=0.01)
    assert found.loc["whole", "failure_rate"] == (whole < 0.1).mean()
    assert found.loc[MEAN_LABEL, "failure_rate"] == pytest.approx(((whole < 0.1).mean() + (core < 0.1).mean()) / 2)
    assert found.equals(figures(stored({"A": {"whole": list(whole), "core": list(core)}}), "A"))


def test_the_means_are_those_of_the_evaluation_also_where_dice_is_undefined():
    evaluation = evaluations.made_up(num_cases=8)
    evaluation.scores.loc[evaluation.scores.sample(60, random_state=1).index, "dice"] = np.nan
    names = ["case", "fold", "subset", "label", "dice", "hd95_mm"]
    settings = {key: evaluation.settings[key] for key in ("modalities", "labels", "subsets", "conventions")}
    of_checkpoint = StoredEvaluation(
        "validation", {"0": ""}, **settings, prediction={}, versions={}, scores=evaluation.scores[names]
    )
    summary = by_subset(evaluation).set_index(["subset", "label"])
    for name, subset in evaluation.subsets.items():
        available = [modality for modality, there in zip(evaluation.modalities, subset, strict=True) if there]
        for label, row in figures(of_checkpoint, *available).iterrows():
            expected = summary.loc[(name, label)]
            assert row["n"] == expected["n"]
            assert row["dice"] == pytest.approx(expected["dice"])
            assert row["failure_rate"] == pytest.approx(expected["failure_rate"])
            assert row["dice_low"] <= row["dice"] <= row["dice_high"]


def weak_because(dice: list[float], complete: list[float]) -> str:
    return figures(stored({"A": {"whole": dice}, "A+B": {"whole": complete}}), "A").loc["whole", "weak_because"]


BELOW = "Dice below 50 % on average: "
LOWER = "Dice 10 points or more lower than with all modalities: "
FAILED = "10 % or more of the cases failed (Dice below 10 %): "


@pytest.mark.parametrize(
    ("dice", "complete", "words"),
    [
        ([0.7] * 10, [0.8] * 10, [f"{LOWER}10.0 points"]),
        ([0.701] * 10, [0.8] * 10, []),
        ([0.499] * 10, [0.5] * 10, [f"{BELOW}49.9 %"]),
        ([0.5] * 10, [0.5] * 10, []),
        ([0.09] + [0.9] * 9, [0.09] + [0.9] * 9, [f"{FAILED}10.0 %"]),
        ([0.1] + [0.9] * 9, [0.1] + [0.9] * 9, []),
        ([0.09] + [0.9] * 10, [0.09] + [0.9] * 10, []),
        ([0.0, 0.2], [0.5, 0.6], [f"{BELOW}10.0 %", f"{LOWER}45.0 points", f"{FAILED}50.0 %"]),
    ],
)
def test_weak_starts_at_the_thresholds(dice, complete, words):
    assert weak_because(dice, complete) == "; ".join(words)


def test_a_drop_is_measured_on_the_same_cases():
    both = stored({"A": {"whole": [0.8, 0.8, np.nan]}, "A+B": {"whole": [0.85, 0.85, 0.99]}})
    assert figures(both, "A").loc["whole", "below_complete"] == pytest.approx(0.05)
    assert np.isnan(figures(both, "A", "B").loc["whole", "below_complete"])


def test_few_cases_and_subsets_not_evaluated():
    for number, few in ((4, True), (5, False)):
        assert figures(stored({"A": {"whole": [0.8] * number}}), "A").loc["whole", "few_cases"] == few
    assert len(figures(stored({"A": {"whole": [0.8]}}), "B")) == 0


def test_one_label_has_no_mean_over_labels():
    assert list(figures(stored({"A": {"whole": [0.8, 0.9]}}), "A").index) == ["whole"]
