"""Evaluating, comparing and reporting through the commands, on the trained tiny phantom."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

pytestmark = pytest.mark.integration

STAGE3, CONTROL = "UniMRSegStage3Trainer", "UniMRSegModalityDropoutTrainer"
COMPLETE = "FLAIR+T1+T1ce+T2"


def evaluate(workspace, trainer: str, *more: object, fold: int = 0) -> str:
    return workspace.run(
        "unimrseg", "evaluate", "-d", workspace.dataset, "-c", workspace.configuration, "-p", workspace.plans,
        "-f", fold, "-tr", trainer, "-device", "cpu", *more,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def evaluations(workspace):
    """Folders of the evaluations of stage 3 and the control, of all subsets of the validation case."""
    folders = {}
    for trainer in (STAGE3, CONTROL):
        told = evaluate(workspace, trainer)
        folders[trainer] = workspace.model_folder(trainer) / "evaluation_folds_0"
        assert f"Written to {folders[trainer]}" in told and "mean of the 14 incomplete" in told
    return folders


@pytest.mark.parametrize("trainer", [STAGE3, CONTROL])
def test_complete_input_has_the_dice_of_nnunets_own_validation(workspace, evaluations, trainer):
    """Whatever the machine: the same network on the same case, so the same Dice."""
    scores = pd.read_csv(evaluations[trainer] / "subsets.csv")
    scores = scores[scores["subset"] == COMPLETE].set_index(["case", "label"])["dice"]
    values = json.loads((evaluations[trainer] / "summary.json").read_text())["label_values"]
    validation = workspace.model_folder(trainer) / "fold_0" / "validation"
    compared = 0
    for entry in json.loads((validation / "summary.json").read_text())["metric_per_case"]:
        name = entry["reference_file"].rsplit("/", 1)[1].removesuffix(".nii.gz")
        for label, value in values.items():
            assert scores[name, label] == pytest.approx(entry["metrics"][str(value)]["Dice"], abs=1e-6)
            compared += 1
    assert compared == 3


def test_all_outputs_are_there(evaluations):
    folder = evaluations[STAGE3]
    for name in ("subsets.csv", "summary.json", "table.md", "table.tex", "report.html"):
        assert (folder / name).stat().st_size > 100, name
    assert len(list(folder.glob("plots/*.png"))) >= 3 and len(list(folder.glob("montages/*.png"))) == 1
    assert len(list(folder.glob("predictions/*/*.nii.gz"))) == 15
    assert len(pd.read_csv(folder / "subsets.csv")) == 15 * 3


def test_a_second_call_predicts_nothing_anew(workspace, evaluations):
    files = list(evaluations[STAGE3].glob("predictions/*/*.nii.gz"))
    before = {path: path.stat().st_mtime_ns for path in files}
    told = evaluate(workspace, STAGE3, "--subsets", "all", "--no_report")
    assert "mean of the 14 incomplete" in told
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_predictions_tell_what_to_expect(workspace, evaluations, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(workspace.raw / workspace.dataset_name / "imagesTs", images)
    name = min(path.name[:-12] for path in images.glob("*_0001.nii.gz"))
    (images / f"{name}_0001.nii.gz").unlink()
    command = ("-i", images, "-d", workspace.dataset, "-c", workspace.configuration, "-p", workspace.plans, "-f", 0,
               "-device", "cpu", "--disable_tta", "-npp", 0, "-nps", 0)  # fmt: skip
    workspace.run("unimrseg", "predict", "-o", tmp_path / "out", *command)
    case = json.loads((tmp_path / "out" / "report.json").read_text())["cases"][name]
    assert case["missing"] == ["T1"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    expected = pd.read_csv(evaluations[STAGE3] / "subsets.csv").query("subset == 'FLAIR+T1ce+T2' and label == 'edema'")
    (told,) = (figures["dice"] for figures in case["expected_dice"] if figures["label"] == "edema")
    assert told == pytest.approx(expected["dice"].mean(), abs=1e-9)


def test_two_evaluations_compared(workspace, evaluations, tmp_path):
    told = workspace.run("unimrseg", "compare", evaluations[CONTROL], evaluations[STAGE3], "-o", tmp_path / "compared")
    assert COMPLETE in told.stdout or "FLAIR" in told.stdout
    for name in ("differences.csv", "subsets.csv", "summary.json", "table.md", "table.tex", "report.html"):
        assert (tmp_path / "compared" / name).stat().st_size > 100, name


def test_missing_scans_are_reconstructed(workspace, tmp_path):
    source = workspace.raw / workspace.dataset_name / "imagesTs"
    images = tmp_path / "images"
    shutil.copytree(source, images)
    name = min(path.name[:-12] for path in images.glob("*_0001.nii.gz"))
    (images / f"{name}_0001.nii.gz").unlink()
    workspace.run(
        "unimrseg", "reconstruct", "-i", images, "-o", tmp_path / "out", "-d", workspace.dataset,
        "-c", workspace.configuration, "-p", workspace.plans, "-f", 0, "-device", "cpu", "--disable_tta",
        "--intensities",
    )  # fmt: skip
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == [f"{name}_0001.nii.gz"]
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) > 2
