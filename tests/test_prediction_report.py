"""Reports beside predictions of a tiny untrained model, through `unimrseg predict` and from Python."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import evaluations
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from report_browser import PHONE, browser, requested
from test_expected_dice import LOWER, stored
from test_predictor_files import SEQUENTIAL, make_predictor, tiny_network

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.expected_dice import EvaluatedModel, expected_dice
from nnunetv2_unimrseg.evaluation.in_checkpoint import store_evaluation
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint, weights_sha256
from nnunetv2_unimrseg.reports import case_remarks
from nnunetv2_unimrseg.reports.case_remarks import expected_for_case, remarks
from nnunetv2_unimrseg.reports.prediction import evaluated_model, write_prediction_report
from nnunetv2_unimrseg.utils.hardware import device_option

LABELS = ("whole", "core")
NOTHING_ELSE = ("-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar", "--disable_tta")


# --- a model folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """A model folder as nnU-Net leaves it, two folds of an untrained network, not evaluated."""
    folder = tmp_path / "UniMRSegStage2Trainer__nnUNetPlans__3d_fullres"
    for fold in (0, 1):
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {
            "network_weights": tiny_network(fold, tiny.dataset_json())[2].state_dict(),
            "trainer_name": "UniMRSegStage2Trainer",
            "inference_allowed_mirroring_axes": (0, 1),
            "init_args": {"configuration": "3d_fullres", "plans": tiny.plans()},
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    return folder


def evaluate(model, *, folds=("0",), without: str = "", num_cases: int = 12, kind: str = "validation") -> None:
    """Store a made-up evaluation of the folds in their checkpoints, one subset left out."""
    evaluation = evaluations.made_up(tiny.NAMES, LABELS, num_cases=num_cases, better=0.1)
    paths = {fold: model / f"fold_{fold}" / "checkpoint_final.pth" for fold in folds}
    hashes = {fold: weights_sha256(read_checkpoint(path)["network_weights"]) for fold, path in paths.items()}
    evaluation.settings["kind"] = kind
    evaluation.settings["model"] |= {"folds": list(folds), "weights_sha256": hashes}
    scores = evaluation.scores[evaluation.scores["subset"] != without]
    scores = pd.concat([scores.assign(fold=fold, case=scores["case"] + f"_{fold}") for fold in folds])
    for fold, path in paths.items():
        assert store_evaluation(path, dataclasses.replace(evaluation, scores=scores), fold) is None


@pytest.fixture
def patients(tmp_path):
    """Cases a (complete), b (CT and T1), c (T2)."""
    for name, channels in (("a", range(4)), ("b", (0, 2)), ("c", (3,))):
        tiny.write_case(tmp_path / "in", name, tiny.image(1), channels)
    return tmp_path / "in"


def predict(patients, output, model, *more: object, folds=("0",)) -> int:
    words = ["predict", "-i", patients, "-o", output, "-m", model, "-f", *folds, *NOTHING_ELSE, *more]
    return main([str(word) for word in words])


def read_report(output) -> dict:
    return json.loads((output / "report.json").read_text())


def test_expected_dice_of_a_model_folder(model):
    with pytest.raises(
        UserError, match=r"no evaluation of this model is stored.*`unimrseg evaluate -d Dataset998_Tiny"
    ):
        expected_dice(model, 0)
    evaluate(model, without="T2")
    table = expected_dice(model, 0, ("T1", "CT"))
    assert table["subset"].tolist() == ["CT+T1"] * 3 and table["label"].tolist() == [*LABELS, MEAN_LABEL]
    every = expected_dice(model, 0)
    assert every["subset"].nunique() == 14
    pd.testing.assert_frame_equal(every[every["subset"] == "CT+T1"].reset_index(drop=True), table)
    with pytest.raises(UserError, match="The subset T2 was not evaluated; these were: CT, PET"):
        expected_dice(model, 0, ["T2"])
    with pytest.raises(UserError, match="fold 1 of this model has not been evaluated"):
        expected_dice(model)


def test_predict_writes_what_to_expect_of_each_case(model, patients, tmp_path, capsys):
    evaluate(model, without="T2")
    out = tmp_path / "out"
    assert predict(patients, out, model) == 0
    report = read_report(out)
    assert sorted(report["cases"]) == ["a", "b", "c"]
    (identity,) = report["models"]
    described = report["models"][identity]
    assert described["weights_sha256"] == {
        "0": weights_sha256(read_checkpoint(model / "fold_0" / "checkpoint_final.pth")["network_weights"])
    }
    names = ("dataset", "trainer", "plans", "configuration", "checkpoint", "folds")
    assert [described[name] for name in names] == [
        "Dataset998_Tiny", "UniMRSegStage2Trainer", "nnUNetPlans", "3d_fullres", "checkpoint_final.pth", ["0"],
    ]  # fmt: skip
    assert described["evaluation"]["kind"] == "validation" and described["evaluation"]["num_cases"] == 12
    assert described["evaluation"]["conventions"]["empty"] == "brats"
    assert "mirrored images: True) than these predictions (False" in described["cautions"][0]
    table = expected_dice(model, 0, ("CT", "T1"))
    b = report["cases"]["b"]
    assert (b["available"], b["missing"], b["subset"]) == (["CT", "T1"], ["PET", "T2"], "CT+T1")
    assert [row["dice"] for row in b["expected_dice"]] == table["dice"].tolist()
    dropped = ", ".join(
        f"{label} {100 * drop:.1f} points"
        for label, drop in zip(LABELS, table["below_complete"].head(2), strict=True)
        if drop >= 0.1
    )
    assert b["flags"] == [{"kind": "weak", "text": f"{LOWER}{dropped}"}]
    assert report["cases"]["a"]["flags"] == []
    assert [flag["kind"] for flag in report["cases"]["c"]["flags"]] == ["not_evaluated"]
    assert report["cases"]["c"]["expected_dice"] == []
    printed = capsys.readouterr().out
    mean = table.iloc[-1]
    assert (
        f"b: available: CT, T1, missing: PET, T2; expected Dice {100 * mean['dice']:.1f} % "
        f"(95 % interval {100 * mean['dice_low']:.1f} to {100 * mean['dice_high']:.1f}, over 12 cases)\n"
        f"  WARNING: {LOWER}{dropped}" in printed
    )
    assert "c: available: T2, missing: CT, PET, T1\n  WARNING: what to expect is not known" in printed
    page = (out / "report.html").read_text()
    assert f"<strong>{100 * mean['dice']:.1f}</strong>" in page and "It is not a statement about this patient" in page
    assert sorted(json.loads((out / "modalities.json").read_text())) == ["a", "b", "c"]


def test_without_an_evaluation_the_report_says_how_to_get_one(model, patients, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(patients, out, model, folds=("0", "1")) == 0
    command = "unimrseg evaluate -d Dataset998_Tiny -c 3d_fullres -f 0 1 -tr UniMRSegStage2Trainer -p nnUNetPlans"
    command += device_option()
    (described,) = read_report(out)["models"].values()
    assert described["evaluation"] is None and described["evaluate_with"] == command
    assert command in (out / "report.html").read_text() and command in capsys.readouterr().out
    assert read_report(out)["cases"]["b"]["expected_dice"] == []
    evaluate(model, folds=("0", "1"))
    assert predict(patients, out, model, folds=("0", "1")) == 0
    (described,) = read_report(out)["models"].values()
    assert described["evaluation"]["folds"] == ["0", "1"] and described["evaluation"]["num_cases"] == 24


def test_weights_that_changed_are_one_error_before_predicting(model, patients, tmp_path, capsys):
    evaluate(model)
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = read_checkpoint(path)
    next(iter(checkpoint["network_weights"].values())).mul_(2)
    torch.save(checkpoint, path)
    assert predict(patients, tmp_path / "out", model) == 2
    assert f"The weights in {path} changed since the evaluation was stored in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parts_and_continued_predictions_merge(model, patients, tmp_path):
    evaluate(model)
    out = tmp_path / "out"
    for part in (0, 1):
        assert predict(patients, out, model, "-num_parts", 2, "-part_id", part) == 0
    first = read_report(out)
    assert sorted(first["cases"]) == ["a", "b", "c"]
    (out / "b.nii.gz").unlink()
    for path in patients.glob("a_*"):
        path.unlink()
    assert predict(patients, out, model, "--continue_prediction", "--modalities", "CT", "T2") == 0
    second = read_report(out)
    assert second["cases"]["a"] == first["cases"]["a"]
    assert second["cases"]["b"]["available"] == ["CT"]
    assert all(f'<th scope="row">{name}</th>' in (out / "report.html").read_text() for name in "abc")


def test_cases_of_two_models_are_told_apart(model, patients, tmp_path):
    out = tmp_path / "out"
    evaluate(model)
    assert predict(patients, out, model) == 0
    (patients / "c_0003.nii.gz").unlink()
    assert predict(patients, out, model, folds=("1",)) == 0
    report = read_report(out)
    models = {name: report["models"][case["model"]]["folds"] for name, case in report["cases"].items()}
    assert models == {"a": ["1"], "b": ["1"], "c": ["0"]}
    assert report["cases"]["c"]["expected_dice"] and not report["cases"]["a"]["expected_dice"]
    assert "Models" in (out / "report.html").read_text()


def test_what_is_known_later_reaches_earlier_cases(model, patients, tmp_path):
    out = tmp_path / "out"
    assert predict(patients, out, model) == 0
    evaluate(model)
    predictor = UniMRSegPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    write_prediction_report(out, predictor)
    report = read_report(out)
    assert len(report["models"]) == 1 and all(case["expected_dice"] for case in report["cases"].values())


def test_from_python_with_a_model_folder(model, patients, tmp_path):
    evaluate(model)
    out = tmp_path / "out"
    make_predictor().predict_from_files(patients, out, **SEQUENTIAL)
    report = write_prediction_report(out, model, folds=0)
    assert report == read_report(out) and sorted(report["cases"]) == ["a", "b", "c"]
    with pytest.raises(UserError, match="not loaded from a folder"):
        evaluated_model(make_predictor())


def test_before_predicting_takes_each_folder_and_its_cases_in_place_of_printing(patients, tmp_path, capsys):
    told = []

    def observe(folder, cases):
        assert not (folder / "a.nii.gz").exists()
        told.append((folder, {name: case["missing"] for name, case in cases.items()}))

    make_predictor().predict_from_files(patients, tmp_path / "out", before_predicting=observe, **SEQUENTIAL)
    assert told == [(tmp_path / "out", {"a": [], "b": ["PET", "T2"], "c": ["CT", "PET", "T1"]})]
    assert "available" not in capsys.readouterr().out


def test_many_at_a_time_lose_no_case(model, tmp_path):
    evaluate(model, num_cases=5)
    known = evaluated_model(model, 0)

    def write(number: int) -> None:
        write_prediction_report(
            tmp_path, known, {f"case_{number}": {"available": ["CT"], "missing": ["PET", "T1", "T2"]}}
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(12)))
    assert len(read_report(tmp_path)["cases"]) == 12
    assert sorted(path.name for path in tmp_path.glob("*report*")) == ["report.html", "report.json"]


def test_a_file_that_is_no_report_of_ours_is_kept(model, patients, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text('{"mine": 1}')
    assert predict(patients, out, model) == 2
    assert "is no prediction report of this version" in capsys.readouterr().err
    assert (out / "report.json").read_text() == '{"mine": 1}' and not list(out.glob("*.nii.gz"))


def test_other_modalities_than_the_models_are_not_taken(model):
    evaluate(model)
    dataset = tiny.dataset_json(("CT", "PET", "T1", "FLAIR"))
    (model / "dataset.json").write_text(json.dumps(dataset))
    known = evaluated_model(model, 0)
    assert known.evaluation is None and "of the modalities CT, PET, T1, T2" in known.why_none


def test_an_external_evaluation_counts_for_its_folds(model, patients, tmp_path):
    evaluate(model, folds=("0", "1"), kind="external", num_cases=3)
    assert predict(patients, tmp_path / "both", model, folds=("0", "1")) == 0
    (described,) = read_report(tmp_path / "both")["models"].values()
    assert described["evaluation"]["kind"] == "external" and described["evaluation"]["num_cases"] == 6
    assert predict(patients, tmp_path / "one", model, folds=("1",)) == 0
    (described,) = read_report(tmp_path / "one")["models"].values()
    assert "only of other folds together: 0 1" in described["why_no_evaluation"]


def test_names_with_special_characters_do_not_break_the_page(model, tmp_path):
    names = ("<b>T1</b>", "T2 & co", "PET {{ x }}", "CT")
    (model / "dataset.json").write_text(json.dumps(tiny.dataset_json(names)))
    write_prediction_report(
        tmp_path, model, {"<script>alert(1)</script>": {"available": [names[0]], "missing": list(names[1:])}}, folds=0
    )
    page = (tmp_path / "report.html").read_text()
    assert "<b>T1" not in page and "&lt;b&gt;T1&lt;/b&gt;" in page and "T2 &amp; co" in page
    assert "<script>alert" not in page


def in_memory(folds=("0",), **changes: object) -> EvaluatedModel:
    """Return a model of modalities A and B whose evaluation is made up; `changes` are to that."""
    evaluation = stored({"A": {"whole": [0.3] * 6}, "A+B": {"whole": [0.9] * 6}})
    evaluation = dataclasses.replace(evaluation, weights_sha256=dict.fromkeys(folds, "0" * 64), **changes)
    names = ("dataset", "trainer", "plans", "configuration", "checkpoint")
    description = {**dict.fromkeys(names, "x"), "folds": list(folds), "weights_sha256": evaluation.weights_sha256}
    return EvaluatedModel(description, Modalities(("A", "B")), evaluation, "", "unimrseg evaluate")


CASES = {
    "one": {"available": ["A", "B"], "missing": []},
    "two": {"available": ["A"], "missing": ["B"]},
    "ten": {"available": ["B"], "missing": ["A"]},
}


def test_the_report_cautions_where_expected_dice_may_be_wrong(tmp_path):
    def cautions(model: EvaluatedModel, **prediction: object) -> str:
        (described,) = write_prediction_report(tmp_path, model, CASES, prediction=prediction)["models"].values()
        return " ".join(described["cautions"])

    assert cautions(in_memory()) == ""
    assert "on its own training cases" in cautions(in_memory(("all",)))
    assert cautions(in_memory(("all",), kind="external")) == ""
    assert "Each fold was evaluated alone" in cautions(in_memory(("0", "1")))
    (tmp_path / "report.json").unlink()
    steps = in_memory(prediction={"mirroring": True, "step_size": 0.5})
    assert "(step of the sliding window: 0.5) than these predictions (0.7)" in cautions(
        steps, mirroring=True, step_size=0.7
    )


def test_dice_that_is_nowhere_defined_is_not_expected(tmp_path):
    undefined = stored({"A": {"whole": [np.nan] * 6}})
    model = dataclasses.replace(in_memory(), evaluation=undefined)
    assert remarks(model, {"two": CASES["two"]}) == {"two": "\n  WARNING: evaluated on 0 cases only"}
    report = write_prediction_report(tmp_path, model, CASES)
    assert report["cases"]["two"]["expected_dice"][0]["dice"] is None
    assert "NaN" not in (tmp_path / "report.json").read_text() and "nan" not in (tmp_path / "report.html").read_text()


def test_the_page_in_a_browser(tmp_path):
    write_prediction_report(tmp_path, in_memory(), CASES)
    with browser(tmp_path / "profile") as driver:
        driver.get((tmp_path / "report.html").as_uri())
        assert [address for address in requested(driver) if not address.startswith(("file:", "data:", "chrome"))] == []
        assert driver.get_log("browser") == []

        def shown() -> list[str]:
            return [head.text for head in driver.find_elements("css selector", "#cases-table tbody th")]

        def sort_by(name: str) -> None:
            heads = driver.find_elements("css selector", "#cases-table thead .sort")
            next(head for head in heads if head.text.startswith(name)).click()

        assert shown() == sorted(CASES)
        sort_by("Expected Dice")
        assert shown() == ["two", "one", "ten"]
        sort_by("Expected Dice")
        assert shown() == ["one", "two", "ten"]
        row = driver.find_element("xpath", "//table[@id='cases-table']//tr[th='two']")
        assert "30.0" in row.text and "Weak" in row.text and "Dice below 50 % on average: whole 30.0" in row.text
        assert "Not evaluated" in driver.find_element("xpath", "//table[@id='cases-table']//tr[th='ten']").text
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        width = driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        weak = driver.find_element("css selector", "#cases-table .tag.weak")
        assert weak.location["x"] + weak.size["width"] <= PHONE["width"]


def test_what_to_expect_is_worked_out_once_for_each_subset(model, tmp_path, monkeypatch):
    evaluate(model, num_cases=5)
    known, asked = evaluated_model(model, 0), []

    def counted(of: EvaluatedModel, available: tuple[str, ...]) -> tuple[list, list]:
        asked.append(available)
        return expected_for_case(of, available)

    monkeypatch.setattr(case_remarks, "expected_for_case", counted)
    some = {f"case_{number}": {"available": tiny.NAMES[: 1 + number % 2], "missing": []} for number in range(8)}
    report = write_prediction_report(tmp_path, known, some)
    assert asked == [("CT",), ("CT", "PET")]
    assert report["cases"]["case_3"]["expected_dice"] == expected_for_case(known, ("CT", "PET"))[0] != []
    assert list(remarks(known, some)) == list(some) and len(asked) == 4
