"""Which subsets, and the figures of an evaluation, against values worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from evaluations import made_up

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation import summary
from nnunetv2_unimrseg.evaluation.evaluation import COLUMNS, Evaluation, folder_name
from nnunetv2_unimrseg.evaluation.files import read_evaluation, write_evaluation
from nnunetv2_unimrseg.evaluation.subsets import parse_subsets
from nnunetv2_unimrseg.modalities import Modalities

FOUR = Modalities(("FLAIR", "T1", "T1ce", "T2"))


def names(texts, modalities=FOUR) -> list[str]:
    return [modalities.describe(subset) for subset in parse_subsets(texts, modalities)]


def test_groups_of_subsets():
    assert len(names(["all"])) == 15
    assert names(["single"]) == ["FLAIR", "T1", "T1ce", "T2"]
    assert names(["leave-one-out"]) == ["FLAIR+T1+T1ce", "FLAIR+T1+T2", "FLAIR+T1ce+T2", "T1+T1ce+T2"]
    assert names(["complete", "t2+FLAIR", "T2+flair", "3"]) == ["T2", "FLAIR+T2", "FLAIR+T1+T1ce+T2"]


def test_names_that_hold_a_plus():
    modalities = Modalities(("T1", "T1+C", "FLAIR"))
    assert names(["T1+C"], modalities) == ["T1+C"]
    assert names(["flair+t1+c"], modalities) == ["T1+C+FLAIR"]
    assert names(["T1+T1+C"], modalities) == ["T1+T1+C"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["T1c"], "Did you mean 'T1ce'?"), (["T1++T2"], "Unknown modality ''"), ([], "Which subsets")],
)
def test_subsets_that_cannot_be(texts, message):
    with pytest.raises(UserError) as error:
        parse_subsets(texts, FOUR)
    assert message in str(error.value)


def test_a_modality_called_all_is_that_modality():
    assert names(["all"], Modalities(("all", "T1"))) == ["all"]


def two_modalities(dice: dict[tuple[str, str, str], float]) -> Evaluation:
    """Make an evaluation of CT and PET from Dice by case, subset and label."""
    labels = list(dict.fromkeys(label for _, _, label in dice))
    settings = made_up(("CT", "PET"), labels, 1).settings
    rows = [
        (case, "0", subset, subset.count("+") + 1, label, value, 10 * (1 - value), 1.0, value - 0.5, 2.0, 1.5 + value)
        for (case, subset, label), value in dice.items()
    ]
    return Evaluation(settings, pd.DataFrame(rows, columns=list(COLUMNS)))


@pytest.fixture
def evaluation() -> Evaluation:
    return two_modalities({
        ("a", "CT", "GTV"): 0.4, ("b", "CT", "GTV"): 0.05, ("a", "PET", "GTV"): 0.8, ("b", "PET", "GTV"): 0.6,
        ("a", "CT+PET", "GTV"): 0.7, ("b", "CT+PET", "GTV"): 0.7,
    })  # fmt: skip


def test_means_over_cases(evaluation):
    table = summary.by_subset(evaluation).set_index("subset")
    assert list(table.index) == ["CT", "PET", "CT+PET"]
    assert table.loc["CT", "dice"] == pytest.approx(0.225)
    assert table.loc["CT", "dice_sd"] == pytest.approx(0.175)
    assert table.loc["CT", "failure_rate"] == 0.5
    assert table.loc["PET", "volume_difference_ml"] == pytest.approx(0.2)
    assert table.loc["CT", "absolute_volume_difference_ml"] == pytest.approx(0.275)
    assert (table["n"] == 2).all() and (table["label"] == "GTV").all()


def test_means_over_subsets_and_by_number(evaluation):
    table = summary.by_subset(evaluation)
    over = summary.over_subsets(evaluation, table).set_index("group")
    assert over.loc["all", "dice"] == pytest.approx((0.225 + 0.7 + 0.7) / 3)
    assert over.loc["all", "dice_sd"] == pytest.approx(np.std([0.225, 0.7, 0.7]))
    assert over.loc["incomplete", "dice"] == pytest.approx(0.4625)
    assert over.loc["incomplete", "num_subsets"] == 2
    numbers = summary.by_number(table).set_index("num_modalities")
    assert numbers.loc[1, "dice"] == pytest.approx(0.4625) and numbers.loc[2, "dice"] == pytest.approx(0.7)


def test_adding_a_modality_that_lowers_the_result(evaluation):
    changes = summary.adding_modalities(evaluation)
    assert [tuple(row) for row in changes[["subset", "added"]].to_numpy()] == [("PET", "CT"), ("CT", "PET")]
    assert changes["change"].tolist() == pytest.approx([0.0, 0.475], abs=1e-12)
    assert changes["cases_lowered"].tolist() == [1, 0]
    worse = two_modalities({
        ("a", "CT", "GTV"): 0.4, ("a", "PET", "GTV"): 0.8, ("a", "CT+PET", "GTV"): 0.7
    })  # fmt: skip
    (row,) = summary.monotonicity(worse, summary.adding_modalities(worse)).to_dict("records")
    assert (row["pairs"], row["pairs_lowered"], row["cases"], row["cases_lowered"]) == (2, 1, 2, 1)
    assert row["mean_drop"] == row["largest_drop"] == pytest.approx(0.1)


def test_the_cost_of_losing_a_modality(evaluation):
    cost = summary.cost_of_losing(evaluation, summary.adding_modalities(evaluation)).set_index("modality")
    assert cost["from_complete"].to_dict() == pytest.approx({"CT": 0.0, "PET": 0.475}, abs=1e-12)


def test_only_cases_scored_in_both_subsets_are_compared():
    evaluation = two_modalities({
        ("a", "CT", "GTV"): 0.4, ("b", "CT", "GTV"): 0.9, ("a", "PET", "GTV"): 0.8, ("a", "CT+PET", "GTV"): 0.7,
        ("b", "CT+PET", "GTV"): math.nan,
    })  # fmt: skip
    change = summary.adding_modalities(evaluation).set_index("subset").loc["CT"]
    assert change["n"] == 1 and change["change"] == pytest.approx(0.3)
    assert summary.by_subset(evaluation).set_index("subset").loc["CT+PET", "n"] == 1


def test_the_mean_over_labels_follows_the_labels():
    evaluation = two_modalities({
        ("a", "CT", "one"): 0.2, ("a", "CT", "two"): 0.4, ("a", "PET", "one"): 0.6, ("a", "PET", "two"): 0.6,
        ("a", "CT+PET", "one"): 0.5, ("a", "CT+PET", "two"): 0.9,
    })  # fmt: skip
    table = summary.by_subset(evaluation).set_index(["subset", "label"])
    assert table.loc[("CT", "mean"), "dice"] == pytest.approx(0.3)
    changes = summary.adding_modalities(evaluation).set_index(["subset", "label"])
    assert changes.loc[("PET", "mean"), "change"] == pytest.approx(0.1)
    assert changes.loc[("PET", "one"), "change"] == pytest.approx(-0.1)
    assert summary.headline_label(evaluation) == "mean"
    lowered = summary.monotonicity(evaluation, summary.adding_modalities(evaluation)).set_index("label")
    assert list(lowered.index) == ["one", "two", "mean"]
    assert lowered["pairs_lowered"].to_dict() == {"one": 1, "two": 0, "mean": 0}


def test_an_evaluation_survives_its_folder(tmp_path):
    evaluation = made_up(labels=("a, b", "NA"), num_cases=2)
    evaluation.scores.loc[0, "dice"] = math.nan
    write_evaluation(evaluation, tmp_path)
    again = read_evaluation(tmp_path)
    pd.testing.assert_frame_equal(again.scores, evaluation.scores)
    assert again.settings == evaluation.settings
    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert figures == json.loads(json.dumps(summary.summary_tables(again)))
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    assert again.complete == "FLAIR+T1+T1ce+T2"
    assert again.prediction_path("x", "T1+T2") == tmp_path / "predictions" / "T1+T2" / "x.nii.gz"


def test_folders_of_subsets_are_told_apart():
    assert folder_name("T1 C/x") != folder_name("T1_C-x")
    assert "/" not in folder_name("T1/T2")


def test_what_is_no_evaluation(tmp_path):
    with pytest.raises(UserError, match="holds no finished evaluation"):
        read_evaluation(tmp_path)
    write_evaluation(made_up(num_cases=1), tmp_path)
    text = (tmp_path / "summary.json").read_text().replace('"format": 1', '"format": 99')
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match="format 1"):
        read_evaluation(tmp_path)


def test_ten_modalities_have_1023_subsets_and_figures():
    evaluation = made_up([f"M{number}" for number in range(10)], ["GTV"], num_cases=2)
    changes = summary.adding_modalities(evaluation)
    assert len(changes) == 10 * (2**9 - 1) and len(summary.by_subset(evaluation)) == 1023


def test_long_names_of_subsets_are_short_folders_that_differ():
    names = ["+".join([f"modality_{number:040d}" for number in range(count)]) for count in (6, 7)]
    folders = [folder_name(name) for name in names]
    assert max(map(len, folders)) < 140 and len(set(folders)) == 2
