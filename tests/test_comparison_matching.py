"""What evaluations must have in common to be compared, what is left out, and what the models are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparable import another, baseline, changed, only, only_subsets

from nnunetv2_unimrseg.comparison.matching import match
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation

TWO = ("CT", "PET")


def two(**options: object) -> Evaluation:
    return baseline(modalities=TWO, labels=("tumour",), num_cases=4, **options)


def with_other_order(of: Evaluation) -> Evaluation:
    """The same evaluation as of a model whose channels are in the reverse order and whose names are in capitals."""

    def renamed(subset: str) -> str:
        return "+".join(reversed(subset.upper().split("+")))

    subsets = [
        {"name": renamed(entry["name"]), "available": [name.upper() for name in reversed(entry["available"])]}
        for entry in reversed(of.settings["subsets"])
    ]
    shuffled = of.scores.sample(frac=1, random_state=0)
    shuffled = shuffled.assign(subset=shuffled["subset"].map(renamed))
    modalities = [name.upper() for name in reversed(of.settings["modalities"])]
    return changed(replace(of, scores=shuffled), modalities=modalities, subsets=subsets)


def test_the_order_and_case_of_modalities_do_not_matter():
    first = baseline(modalities=("Flair", "T1", "T2"), num_cases=3)
    second = another(first)
    plain, reordered = match([first, second]), match([first, with_other_order(second)])
    assert list(reordered.subsets) == list(first.subsets)
    assert reordered.notices == ()
    keys = ["model", "case", "subset", "label"]
    np.testing.assert_array_equal(
        plain.scores.sort_values(keys)["dice"].to_numpy(), reordered.scores.sort_values(keys)["dice"].to_numpy()
    )


def test_only_common_cases_and_subsets_count_and_the_others_are_named():
    first = two()
    second = only_subsets(another(first), "CT", "CT+PET")
    second = only(second, second.scores["case"] != "case_01")
    matched = match([only(first, first.scores["case"] != "case_03"), second])
    assert matched.cases == ["case_00", "case_02"]
    assert list(matched.subsets) == ["CT", "CT+PET"]
    assert len(matched.scores) == 2 * 2 * 2
    text = "\n".join(matched.notices)
    assert "case_01 of UniMRSegStage3Trainer (1 case)" in text
    assert "case_03 of other (1 case)" in text
    assert "PET of UniMRSegStage3Trainer (1 subset)" in text


def test_a_case_that_one_model_could_not_score_with_one_subset_is_left_out_there_only():
    first = two()
    failed = (first.scores["case"] == "case_02") & (first.scores["subset"] == "PET")
    matched = match([first, only(another(first), ~failed)])
    assert matched.cases == ["case_00", "case_01", "case_02", "case_03"]
    assert matched.scores.groupby("subset")["case"].nunique().to_dict() == {"CT": 4, "PET": 3, "CT+PET": 4}
    assert matched.notices == ("Not every case was scored by all with every subset: PET (3 of 4).",)


def refused(*evaluations: Evaluation, names: list[str] | None = None) -> str:
    with pytest.raises(UserError) as error:
        match(evaluations, names)
    return str(error.value)


def test_no_case_in_common():
    first = two()
    second = another(first)
    second = replace(second, scores=second.scores.assign(case="other_" + second.scores["case"]))
    message = refused(first, second)
    assert "no case in common" in message
    assert "case_00" in message and "other_case_00" in message


def test_no_subset_in_common():
    message = refused(only_subsets(two(), "CT"), only_subsets(another(two()), "PET", "CT+PET"))
    assert "no subset of the modalities in common" in message
    assert "other: PET, CT+PET" in message


def test_common_cases_and_subsets_that_never_meet():
    first, second = two(), another(two())
    first = only(first, (first.scores["case"] == "case_00") ^ (first.scores["subset"] == "PET"))
    second = only(second, (second.scores["case"] == "case_00") ^ (second.scores["subset"] != "PET"))
    assert "No case was scored with the same subset" in refused(first, second)


def test_other_modalities():
    message = refused(two(), baseline(modalities=("CT", "MR"), labels=("tumour",), num_cases=4))
    assert "modalities differ (UniMRSegStage3Trainer (1): CT, PET; UniMRSegStage3Trainer (2): CT, MR)" in message


def test_other_conventions_say_that_nothing_need_be_predicted_again():
    second = changed(another(two()), conventions={"empty": "nan", "failure_dice": 0.1})
    message = refused(two(), second)
    assert "empty (UniMRSegStage3Trainer: brats; other: nan)" in message
    assert "again for other" in message and "--empty brats" in message
    assert "nothing is predicted again" in message
    assert "failure_dice" not in message
    third = changed(another(two()), conventions={"empty": "brats", "failure_dice": 0.2})
    assert "failure_dice (UniMRSegStage3Trainer: 0.1; other: 0.2)" in refused(two(), third)


def test_another_reference_of_the_same_case():
    second = another(two())
    one_voxel = 0.001 * (second.scores["case"] == "case_02")
    message = refused(
        two(), replace(second, scores=second.scores.assign(reference_ml=second.scores["reference_ml"] + one_voxel))
    )
    assert "Labels differ for case case_02:" in message
    rounding = second.scores["reference_ml"] * (1 + 1e-12)
    assert match([two(), replace(second, scores=second.scores.assign(reference_ml=rounding))]).cases


def test_all_problems_are_told_at_once():
    second = another(baseline(modalities=("MR", "US"), labels=("lung",), num_cases=4))
    second = replace(second, scores=second.scores.assign(case="x" + second.scores["case"]))
    message = refused(two(), changed(second, conventions={"empty": "skip", "failure_dice": 0.1}))
    for part in ("modalities differ", "labels differ", "conventions", "no case in common", "no subset"):
        assert part in message


def test_the_order_of_labels_does_not_matter():
    first = baseline(modalities=TWO, num_cases=2)
    second = changed(another(first), labels=list(reversed(first.labels)))
    assert match([first, second]).labels == tuple(first.labels)


def test_one_evaluation_is_not_enough():
    assert "at least two evaluations, found 1" in refused(two())


def test_unequal_conditions_are_told():
    first = two()
    second = changed(
        another(first), source="cases given", prediction={"mirroring": False, "step_size": 0.5, "device": "x"}
    )
    text = "\n".join(match([first, second]).notices)
    assert "other: cases given" in text and "none was trained" in text
    assert "mirroring (UniMRSegStage3Trainer: True; other: False)" in text
    assert "step_size" not in text and "device" not in text


def test_names_that_repeat_are_told_apart_by_folder_or_number():
    first, second = two(), another(two(), name="UniMRSegStage3Trainer")
    in_folders = [replace(first, folder=Path("/a/one/evaluation")), replace(second, folder=Path("/a/two/evaluation"))]
    assert match([first, second]).names == ("UniMRSegStage3Trainer (1)", "UniMRSegStage3Trainer (2)")
    assert match(in_folders).names == tuple(f"UniMRSegStage3Trainer ({name}/evaluation)" for name in ("one", "two"))
    assert match([*in_folders, another(two())]).names[2] == "other"
    assert match(in_folders, ["A", "B"]).names == ("A", "B")


def test_names_that_do_not_fit():
    first, second = two(), another(two())
    assert "2 evaluations and 1 names" in refused(first, second, names=["A"])
    assert "'A' more than once" in refused(first, second, names=["A", "A"])
    assert "not be empty" in refused(first, second, names=["A", " "])


def test_a_folder_given_twice():
    first = replace(two(), folder=Path("/a/evaluation"))
    assert "given more than once" in refused(first, replace(first, folder=Path("/a/b/../evaluation")))
