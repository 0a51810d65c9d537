"""`unimrseg train --from-checkpoint`: what is checked, written to the plans and trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_cli import refused
from test_retrofit import save

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

TRAIN = ("train", "7", "3d_fullres", "0", "-device", "cpu")
RETROFIT = TRAINER_OF_SECTION["retrofit"]


@pytest.fixture
def checkpoint(tmp_path: Path, preprocessed: Path) -> Path:
    (preprocessed.parent / "splits_final.json").write_text("[]")
    folder = tmp_path / "model" / "fold_0"
    folder.mkdir(parents=True)
    return save(folder / "checkpoint_final.pth")


def settings(plans: Path) -> dict:
    return json.loads(plans.read_text())["configurations"]["3d_fullres"].get("unimrseg", {})


def trained(commands: list) -> list[str]:
    return [words[words.index("-tr") + 1] for words, _ in commands]


def test_keeping_complete_cases_trains_the_retrofit_alone(preprocessed, commands, checkpoint, capsys):
    assert main([*TRAIN, "--from-checkpoint", str(checkpoint), "--keep-complete"]) == 0
    assert trained(commands) == [RETROFIT]
    stored = str(checkpoint.parents[1] / "fold_{fold}" / checkpoint.name)
    assert settings(preprocessed) == {"retrofit": {"start_from": stored}}
    assert f"-tr {RETROFIT}" in capsys.readouterr().out.split("segmented as before")[1]
    commands.clear()
    assert main([*TRAIN, "--keep-complete"]) == 0
    assert trained(commands) == [RETROFIT]


def test_without_it_stages_2_and_3_start_from_the_checkpoint(preprocessed, commands, checkpoint):
    plans = json.loads(preprocessed.read_text())
    plans["configurations"]["3d_fullres"]["unimrseg"] = {"stage3": {"start_from": "/other.pth", "num_epochs": 3}}
    preprocessed.write_text(json.dumps(plans))
    elsewhere = checkpoint.rename(checkpoint.parents[2] / "kept.pth")
    assert main([*TRAIN, "--from-checkpoint", str(elsewhere)]) == 0
    assert trained(commands) == [TRAINER_OF_SECTION["stage2"], TRAINER_OF_SECTION["stage3"]]
    assert settings(preprocessed) == {"stage2": {"start_from": str(elsewhere)}, "stage3": {"num_epochs": 3}}


def test_a_relative_path_is_stored_whole(preprocessed, commands, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parents[1])
    assert main([*TRAIN, "--from-checkpoint", "fold_{fold}/checkpoint_final.pth", "--keep-complete"]) == 0
    stored = str(checkpoint.parents[1] / "fold_{fold}" / checkpoint.name)
    assert settings(preprocessed) == {"retrofit": {"start_from": stored}}


def test_a_checkpoint_of_another_fold_is_reported(preprocessed, commands, checkpoint, capsys):
    common = ("train", "7", "3d_fullres", "1", "-device", "cpu", "--keep-complete", "--from-checkpoint")
    assert main([*common, str(checkpoint)]) == 0
    assert f"{checkpoint} was trained in fold 0" in capsys.readouterr().out
    assert settings(preprocessed) == {"retrofit": {"start_from": str(checkpoint)}}


def test_what_does_not_fit_is_refused_before_anything_is_written(preprocessed, commands, checkpoint, capsys):
    before = preprocessed.read_text()
    folder = checkpoint.parent
    other = save(folder / "other.pth", dataset_json={"channel_names": {"0": "other"}, "labels": {"background": 0}})
    stage_1 = save(folder / "stage_1.pth", TRAINER_OF_SECTION["stage1"])
    cases = [
        (("--keep-complete",), "retrofit.start_from does not name one. Add --from-checkpoint PATH."),
        (("--from-checkpoint", "/no/checkpoint.pth"), "There is no checkpoint /no/checkpoint.pth"),
        (("--from-checkpoint", str(preprocessed)), "cannot be read"),
        (("--keep-complete", "--from-checkpoint", str(other)), "channel_names: "),
        (("--from-checkpoint", str(stage_1)), "stage-1 model"),
    ]
    for flags, message in cases:
        assert message in refused(capsys, *TRAIN, *flags)
        assert preprocessed.read_text() == before
    assert not commands


def test_a_training_that_began_with_another_checkpoint_is_not_continued(preprocessed, commands, checkpoint, capsys):
    assert main([*TRAIN, "--from-checkpoint", str(checkpoint), "--keep-complete"]) == 0
    folder = preprocessed.parents[2] / "nnUNet_results" / "Dataset007_Tiny" / f"{RETROFIT}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(preprocessed.read_text())
    torch.save({}, folder / "fold_0" / "checkpoint_latest.pth")
    other = save(checkpoint.parents[2] / "other.pth")
    before = preprocessed.read_text()
    message = refused(capsys, *TRAIN, "--from-checkpoint", str(other), "--keep-complete")
    assert f"{folder / 'fold_0'} has been trained already, from {checkpoint}." in message
    assert preprocessed.read_text() == before
    assert main([*TRAIN, "--from-checkpoint", str(checkpoint), "--keep-complete"]) == 0
