"""`unimrseg reconstruct`, and what cannot reconstruct."""

from __future__ import annotations

import inspect

import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from reconstructors import write_model

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.reconstructor import Reconstructor
from nnunetv2_unimrseg.reconstruction import case_reconstructor


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A stage-1 model in a results folder, and a case without T2."""
    results = tmp_path / "results"
    write_model(results / "Dataset998_Tiny")
    monkeypatch.setenv("nnUNet_results", str(results))
    tiny.write_case(tmp_path / "in", "case", tiny.image(1), (0, 1, 2))
    return {
        "-i": tmp_path / "in", "-o": tmp_path / "out", "-d": 998, "-c": "3d_fullres", "-f": 0, "-device": "cpu",
        "-npp": 0, "-nps": 0,
    }  # fmt: skip


def run(arguments: dict, *more: object) -> int:
    pairs = [word for flag, value in arguments.items() if value is not None for word in (flag, value)]
    return main(["reconstruct", *map(str, (*pairs, *more))])


def test_missing_modalities_are_written(arguments, tmp_path, capsys):
    assert run(arguments, "--disable_tta") == 0
    assert (tmp_path / "out" / "case_0003.nii.gz").is_file()
    assert (tmp_path / "out" / "case_reconstruction.png").is_file()
    output = capsys.readouterr().out
    assert "case: T2 made from CT+PET+T1" in output and "1 synthetic images written" in output
    assert run(arguments, "--disable_tta", "--modalities", "pet", "--overwrite", "--c") == 2
    assert run(arguments, "--disable_tta", "--c") == 0
    assert run(arguments, "--disable_tta", "--modalities", "pet", "--overwrite") == 0
    assert (tmp_path / "out" / "case_0000.nii.gz").is_file() and (tmp_path / "out" / "scores.csv").is_file()


def test_a_failed_case_is_listed_and_the_exit_code_is_1(arguments, monkeypatch, capsys):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(case_reconstructor, "write_image", fail)
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 1
    assert "1 reconstruction failed:\n  - case, from CT+PET+T1: disk full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"-i": "/nowhere"}, "There is no input folder /nowhere"),
        ({"-f": 3}, "Trained folds: 0"),
        ({"-c": None}, "Give -d DATASET -c CONFIGURATION"),
        ({"-step_size": 0}, "larger than 0"),
        ({"-num_parts": 2, "-part_id": 2}, "part_id must be from 0 to num_parts - 1 = 1"),
        ({"-npp": -1}, "at least 0"),
        ({"--modalities": "PTE"}, "Did you mean 'PET'?"),
        ({"--modalities": "T2"}, "none of the modalities asked for (T2)"),
        ({"-tr": "UniMRSegStage2Trainer"}, "Did you mean 'UniMRSegStage1Trainer__nnUNetPlans__3d_fullres'?"),
    ],
)
def test_each_mistake_is_one_message(arguments, capsys, changes, words):
    assert run({**arguments, **changes}) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not arguments["-o"].exists()


def error_of(folder) -> str:
    with pytest.raises(UserError) as caught:
        Reconstructor(device=torch.device("cpu")).initialize_from_trained_model_folder(folder, (0,))
    return str(caught.value)


@pytest.mark.parametrize("trainer", ["stage2", "stage3", "modality_dropout", "nnUNetTrainer"])
def test_only_stage_1_reconstructs(tmp_path, monkeypatch, trainer):
    message = error_of(write_model(tmp_path, monkeypatch, trainer=trainer))
    assert "is not a stage-1 model" in message and "-tr UniMRSegStage1Trainer" in message


def test_models_that_do_not_fit(tmp_path):
    folder = write_model(tmp_path)
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    other = {**checkpoint["init_args"], "plans": tiny.plans(patch_size=(8, 8, 8))}
    torch.save({**checkpoint, "init_args": other}, path)
    assert "patch_size: [8, 8, 8] in the checkpoint" in error_of(folder)
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read" in error_of(folder)


def test_a_cascade_is_refused(tmp_path):
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    assert "second stage of a cascade" in error_of(write_model(tmp_path, plans=plans))


def test_the_sliding_window_is_called_as_nnunets_is():
    name = "_internal_predict_sliding_window_return_logits"
    ours, stock = (inspect.signature(getattr(one, name)).parameters for one in (Reconstructor, nnUNetPredictor))
    assert list(ours) == list(stock) and ours["do_on_device"].default == stock["do_on_device"].default
