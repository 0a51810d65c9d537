"""Models, plans and data on a read-only file system, as in containers and shared folders: what works, what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reconstructors
import tiny
import torch
import trained
from full_disk import check_whole, files_in, read_only

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.evaluation.in_checkpoint import KEY
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.reconstruction.training_intensities import CACHE_NAME

QUICK = ("-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar", "--disable_tta")
EVALUATE = ("--subsets", "complete", "T1", "--no_report")


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    """nnU-Net's three folders in one, as a container has them: two cases that fold 0 validates."""
    folder = tmp_path / "shared"
    trained.write_dataset(folder, ["a", "b"], [["a", "b"]])
    (folder / "results").mkdir()
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(folder / variable))
    return folder


def run(capsys: pytest.CaptureFixture, *command: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in command])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def never(*_: object, **__: object) -> None:
    raise AssertionError("something was computed")


def test_evaluate_works_elsewhere_and_says_why_the_checkpoint_does_not_get_the_result(shared, tmp_path, capsys):
    model, out = trained.write_model(shared / "results", folds=("0", "1")), tmp_path / "out"
    before = files_in(shared)
    with read_only(shared):
        code, said, error = run(capsys, "evaluate", "-m", model, "-o", out, *QUICK, *EVALUATE)
    assert code == 0 and error == ""
    assert {"subsets.csv", "summary.json"} <= {path.name for path in out.iterdir()} and check_whole(out)
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    (warning,) = [line for line in said.splitlines() if "WARNING" in line]
    assert warning.startswith(
        f"WARNING: The evaluation was not stored in its checkpoint. Cannot write {checkpoint}: Read-only file system."
    )
    assert "Read-only file system" in warning and f"so {checkpoint.parent} must be writable" in warning
    assert f"Written to {out}" in said
    assert files_in(shared) == before and KEY not in torch.load(checkpoint, weights_only=False)


def test_of_the_checkpoints_those_that_can_be_written_get_the_result(shared, tmp_path, capsys):
    model, out = trained.write_model(shared / "results", folds=("0", "1")), tmp_path / "out"
    (shared / "preprocessed" / trained.DATASET / "splits_final.json").write_text(
        json.dumps([{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}])
    )
    with read_only(model / "fold_0"):
        code, said, _ = run(capsys, "evaluate", "-m", model, "-o", out, *QUICK, "-f", 0, 1, *EVALUATE)
    assert code == 0 and said.count("WARNING") == 1
    assert f"Stored in {model / 'fold_1' / 'checkpoint_final.pth'}, for prediction reports." in said
    stored = [KEY in torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False) for fold in "01"]
    assert stored == [False, True]


@pytest.mark.parametrize("there_already", [False, True])
def test_evaluate_without_an_output_folder_is_refused_before_computing(shared, capsys, monkeypatch, there_already):
    model = trained.write_model(shared / "results")
    folder = model / "evaluation_folds_0"
    command = ("evaluate", "-m", model, *QUICK, *EVALUATE, "--no_store")
    if there_already:
        assert run(capsys, *command)[0] == 0
    before = files_in(shared)
    monkeypatch.setattr(UniMRSegPredictor, "predict_logits_from_preprocessed_data", never)
    with read_only(shared):
        code, said, error = run(capsys, *command)
    doing, where = ("written to", folder) if there_already else ("made", model)
    assert code == 2 and said == "" and len(error.splitlines()) == 1
    assert f"The output folder {folder} cannot be {doing}: {where} lies on a read-only file system. An eval" in error
    assert error.endswith("is written into the model's folder unless another output folder is given (-o): give one.\n")
    assert files_in(shared) == before


def test_predict_works_with_a_model_and_scans_that_are_read_only(shared, tmp_path, capsys):
    model, out = trained.write_model(shared / "results"), tmp_path / "out"
    images = shared / "raw" / trained.DATASET / "imagesTr"
    before = files_in(shared)
    with read_only(shared):
        code, _, error = run(capsys, "predict", "-i", images, "-o", out, "-m", model, *QUICK, "--save_probabilities")
        assert code == 0 and error == ""
        code, _, error = run(capsys, "predict", "-i", images, "-o", shared / "out", "-m", model, *QUICK)
        assert code == 2 and error == (
            f"unimrseg: error: The output folder {shared}/out cannot be made: {shared} lies on a read-only file "
            "system. Give another output folder (-o).\n"
        )
    endings = (".nii.gz", ".npz", ".pkl")
    assert {f"{case}{ending}" for case in "ab" for ending in endings} < set(check_whole(out))
    assert files_in(shared) == before


def test_reconstruct_works_and_says_that_what_it_measured_is_not_kept(shared, tmp_path, capsys):
    model = reconstructors.write_model(shared / "results" / trained.DATASET)
    tiny.write_case(tmp_path / "in", "x", tiny.image(1), (0, 2))
    command = ("reconstruct", "-i", tmp_path / "in", "-m", model, *QUICK, "--intensities")
    before = files_in(shared)
    with read_only(shared):
        code, said, error = run(capsys, *command, "-o", tmp_path / "out")
        assert code == 0 and error == ""
    (told,) = [line for line in said.splitlines() if line.startswith("The measured intensities are not kept")]
    assert told.startswith(
        "The measured intensities are not kept for the next time: "
        f"Cannot write {model / CACHE_NAME}: Read-only file system."
    )
    assert files_in(shared) == before and len(check_whole(tmp_path / "out")) == 5
    code, said, _ = run(capsys, *command, "-o", tmp_path / "writable")
    assert code == 0 and "not kept" not in said and (model / CACHE_NAME).is_file()
    with read_only(shared):  # what was kept is used
        code, said, _ = run(capsys, *command, "-o", tmp_path / "kept")
        assert code == 0 and "not kept" not in said
    for name in ("x_0001.nii.gz", "x_0003.nii.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes()


def test_configure_refuses_plans_that_are_read_only(shared, capsys):
    path = shared / "preprocessed" / trained.DATASET / "nnUNetPlans.json"
    path.write_text(json.dumps(tiny.plans()))
    command = ("configure", "-d", 998, "-c", "3d_fullres")
    before, content = files_in(shared), path.read_bytes()
    with read_only(shared):
        code, said, error = run(capsys, *command, "--set", "stage1.num_epochs=7")
        assert code == 2 and said == "" and len(error.splitlines()) == 1
        assert error.startswith(f"unimrseg: error: Cannot write {path}: Read-only file system. What was there before")
        assert run(capsys, *command)[0] == 0
    assert files_in(shared) == before and path.read_bytes() == content


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_places_to_write_that_are_read_only_are_one_error(shared, tmp_path, capsys, command):
    import comparable

    arguments = ("-n", 1, "--unseen", 0, "--shape", 24, 24, 24)
    if command == "compare":
        one = comparable.baseline()
        both = {"one": one, "two": comparable.another(one)}
        folders = [comparable.written(evaluation, tmp_path / name) for name, evaluation in both.items()]
        arguments = (*folders, "-o", shared / "out", "--resamples", 100)
    with read_only(shared):
        code, said, error = run(capsys, command, *arguments)
    assert code == 2 and said == "" and len(error.splitlines()) == 1
    assert error.startswith("unimrseg: error: ") and "ead-only file system" in error
