"""The arguments of `unimrseg predict`: nnU-Net's flags, and one error for each mistake."""

from __future__ import annotations

import argparse

import pytest
import torch
from nnunetv2.inference import predict_from_raw_data

from nnunetv2_unimrseg.cli import predict
from nnunetv2_unimrseg.cli.main import main


def stock_parser(monkeypatch, entry_point) -> argparse.ArgumentParser:
    """Return the parser that a command of nnU-Net makes."""

    class Made(Exception):
        pass

    def stop(parser, *_):
        raise Made(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Made) as caught:
            entry_point()
    return caught.value.args[0]


def described(parser: argparse.ArgumentParser) -> dict:
    return {
        flag: (action.dest, action.default, action.type or str, action.nargs)
        for action in parser._actions
        for flag in action.option_strings
        if flag not in ("-h", "--help")
    }


def test_flags_types_and_defaults_are_nnunets(monkeypatch):
    ours = argparse.ArgumentParser()
    predict.add_arguments(ours)
    ours = described(ours)
    stock = described(stock_parser(monkeypatch, predict_from_raw_data.predict_entry_point))
    assert ours["-tr"][1] == "UniMRSegStage3Trainer"
    assert [int(fold) for fold in ours["-f"][1]] == list(stock["-f"][1])
    for flag in stock.keys() - {"-tr", "-f"}:
        assert ours[flag] == stock[flag], flag
    assert ours.keys() - stock.keys() == {
        "--c", "-m", "--modalities", "--no_report", "--files", "--case", "--pattern", "--names", "--ignore",
    }  # fmt: skip


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A results folder that has one dataset with one model, whose checkpoint is empty, and one that was not trained."""
    model = tmp_path / "results" / "Dataset901_Toy" / "UniMRSegStage2Trainer__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").touch()
    (model.with_name("UniMRSegStage1Trainer__nnUNetPlans__3d_fullres") / "fold_0").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return {"-i": tmp_path / "in", "-o": tmp_path / "out", "-d": 901, "-c": "3d_fullres", "-device": "cpu"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Did you mean 'UniMRSegStage2Trainer__nnUNetPlans__3d_fullres'?"),
        ({"-tr": "UniMRSegStage1Trainr"}, "holds: UniMRSegStage2Trainer__nnUNetPlans__3d_fullres."),
        ({"-d": None}, "Give -d DATASET -c CONFIGURATION, or -m MODEL_FOLDER"),
        ({"-m": "models"}, "-d and -c cannot be given too"),
        ({"-d": 902}, "Dataset 902"),
        ({"-f": "first"}, "found 'first'"),
        ({"-step_size": 0}, "-step_size must be larger than 0"),
        ({"-i": "/nowhere"}, "There is no input folder /nowhere"),
        ({"-tr": "UniMRSegStage2Trainer", "-f": 0}, "plans.json"),
    ],
)
def test_each_mistake_is_one_message(arguments, capsys, changes, words):
    given = {**arguments, **changes}
    argv = [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    assert main(["predict", *argv]) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not arguments["-o"].exists()


def test_results_folder_unset(arguments, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    argv = [str(word) for pair in arguments.items() for word in pair]
    assert main(["predict", *argv]) == 2
    assert "nnUNet_results is not set" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_names_the_way_out(arguments, capsys):
    argv = [str(word) for flag, value in arguments.items() if flag != "-device" for word in (flag, value)]
    assert main(["predict", *argv]) == 2
    assert "`-device cpu`" in capsys.readouterr().err
