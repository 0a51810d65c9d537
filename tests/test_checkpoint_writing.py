"""Checkpoints are whole or not there, training goes on from the newest whole one, and failures say what helps."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
import traceback
from argparse import Namespace
from pathlib import Path

import pytest
import tiny
import torch
from kill_and_resume import FINAL, NOT_KILLED, STEP, WRITE, Kill, Place, kill_and_resume
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.multiprocessing import ProcessRaisedException

from nnunetv2_unimrseg.cli import launchers
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet import training_process
from nnunetv2_unimrseg.nnunet.stage_training import StageTraining
from nnunetv2_unimrseg.nnunet.training_state import TrainingState, training_state
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.trainers import resuming
from nnunetv2_unimrseg.trainers.progress import ProgressLogger
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.utils.files import file_problem

EMPTY, HALF, NO_ARCHIVE, OTHER = b"", "half", b"not a checkpoint", "other"
"""Damages of a checkpoint; OTHER is a whole archive that holds no training."""


@pytest.fixture(autouse=True)
def _places(folders, tmp_path):
    cases = tmp_path / "preprocessed" / "Dataset998_Tiny" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()


def made(*, continues: bool = False, of: type = UniMRSegStage1Trainer) -> nnUNetTrainer:
    plans = {**tiny.plans(), "continue_training": continues}
    trainer = of(plans, "3d_fullres", 0, tiny.dataset_json(), torch.device("cpu"))
    trainer.initialize()
    return trainer


def path_of(trainer: nnUNetTrainer, name: str) -> Path:
    return Path(trainer.output_folder) / f"checkpoint_{name}.pth"


def write(trainer: nnUNetTrainer, **contents: object) -> None:
    """Write checkpoints: a number of epochs that are done, or damaged ones."""
    for name, content in contents.items():
        path = path_of(trainer, name)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == OTHER:
            torch.save({"network_weights": {}}, path)
        else:
            trainer.current_epoch = 6 if content == HALF else content - 1
            trainer._best_ema = 0.25
            trainer.save_checkpoint(str(path))
            if content == HALF:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def start_training(trainer: nnUNetTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our trainers do when a training starts, without nnU-Net's part and without data."""
    shutil.rmtree(trainer.preprocessed_dataset_folder)
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda _: None)
    trainer.on_train_start()


def log_of(trainer: nnUNetTrainer) -> str:
    return Path(trainer.log_file).read_text()


def half_written(error: BaseException | None):
    def save(_: object, path: str) -> None:
        Path(path).write_bytes(b"PK\x03\x04 half of it")
        if error is not None:
            raise error

    return save


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos"), UserError, "unexpected pos"),
        (None, UserError, "what was written is not whole"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_save_that_fails_half_way_leaves_the_old_checkpoint(monkeypatch, error, raised, said):
    trainer = made()
    write(trainer, latest=3)
    before = path_of(trainer, "latest").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_written(error))
        with pytest.raises(raised, match=said) as caught:
            trainer.save_checkpoint(str(path_of(trainer, "latest")))
    assert path_of(trainer, "latest").read_bytes() == before
    assert not list(Path(trainer.output_folder).glob(".*"))
    if raised is UserError:
        assert str(caught.value).startswith(f"Cannot write {path_of(trainer, 'latest')}: ")
        assert str(caught.value).endswith("(nnUNetv2_train: with --c) goes on from the last checkpoint.")


def test_only_rank_0_writes_and_only_where_checkpoints_are_wanted():
    trainer = made()
    for name, value in (("local_rank", 1), ("disable_checkpointing", True)):
        setattr(trainer, name, value)
        trainer.save_checkpoint(str(path_of(trainer, "latest")))
        assert not path_of(trainer, "latest").exists()
        trainer.local_rank, trainer.disable_checkpointing = 0, False


def test_what_an_earlier_training_left_is_not_gone_on_from():
    trainer = made()
    log = trainer.logger.local_logger.my_fantastic_logging
    log["epoch_start_timestamps"] = [1000.0]
    write(trainer, best=480, final=500)
    log["epoch_start_timestamps"] = [2000.0]
    write(trainer, latest=50)
    resumed = made(continues=True)
    resumed.load_checkpoint(str(path_of(resumed, "final")))
    assert resumed.current_epoch == 50


@pytest.mark.parametrize(
    ("there", "expected", "epoch"),
    [
        ({"final": 9, "latest": 8, "best": 5}, "final", 9),
        ({"final": 9, "best": 9}, "final", 9),
        ({"latest": 8, "best": 5}, "latest", 8),
        ({"latest": 5, "best": 8}, "best", 8),
        ({"latest": 8, "best": 8}, "best", 8),  # of one epoch, best was written later and knows that it is the best
        ({"final": 5, "latest": 8}, "latest", 8),  # num_epochs was raised after the end
        ({"best": 2}, "best", 2),
        ({"final": EMPTY, "latest": 8, "best": 5}, "latest", 8),
        ({"final": HALF, "best": 5}, "best", 5),
        ({"latest": EMPTY, "best": 5}, "best", 5),
        ({"latest": 5, "best": NO_ARCHIVE}, "latest", 5),
        ({"final": HALF, "latest": OTHER, "best": 5}, "best", 5),
    ],
)  # fmt: skip
def test_continuing_takes_the_newest_whole_checkpoint(monkeypatch, there, expected, epoch):
    write(made(), **there)
    trainer = made(continues=True)
    read, load = [], resuming.read_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(resuming, "read_checkpoint", lambda path: read.append(path) or load(path))
        trainer.load_checkpoint(str(path_of(trainer, next(iter(there)))))  # as nnU-Net: final, else latest, else best
    assert trainer.current_epoch == epoch
    assert sorted(read) == sorted(path_of(trainer, name) for name in there)
    assert trainer.weights_were_loaded
    said = log_of(trainer)
    assert f"Continuing from {path_of(trainer, expected)}, the newest whole checkpoint, after {epoch} epochs." in said
    for name, content in there.items():
        assert (f"checkpoint_{name}.pth is damaged and was passed over: " in said) == (not isinstance(content, int))
    assert trainer._best_ema == (0.25 if isinstance(there.get("best", 0), int) else None)


def test_continuing_without_a_whole_checkpoint_is_one_error():
    write(made(), final=EMPTY, latest=HALF, best=OTHER)
    trainer = made(continues=True)
    with pytest.raises(UserError) as error:
        trainer.load_checkpoint(str(path_of(trainer, "final")))
    lines = str(error.value).splitlines()
    assert lines[0] == (
        f"The training in {trainer.output_folder} cannot be continued: none of its checkpoints is whole."
    )
    assert lines[1] == "  - checkpoint_final.pth: it is empty"
    assert lines[2].startswith("  - checkpoint_best.pth: it holds no optimizer_state, ")
    assert lines[3].startswith("  - checkpoint_latest.pth: it ends after ")
    assert lines[4] == "Restore a copy of one of them, or remove them to start this training anew."


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(monkeypatch):
    write(made(), latest=5, best=3)
    trainer, load = made(continues=True), torch.load

    def refuse(path: Path, **options: object):
        if path.name == "checkpoint_latest.pth":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return load(path, **options)

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError):
        trainer.load_checkpoint(str(path_of(trainer, "latest")))


def test_validation_loads_the_checkpoint_that_it_names(monkeypatch):
    write(made(), final=4, latest=9, best=2)
    for name, epoch in (("final", 4), ("best", 2)):  # --val, then --val_best
        trainer = made()
        trainer.load_checkpoint(str(path_of(trainer, name)))
        assert trainer.current_epoch == epoch
    trainer = made(continues=True)  # --c --val_best
    trainer.load_checkpoint(str(path_of(trainer, "final")))
    assert trainer.current_epoch == 9
    trainer.load_checkpoint(str(path_of(trainer, "best")))
    assert trainer.current_epoch == 2
    trainer = made(continues=True)  # --c --val_best where there was nothing to continue
    start_training(trainer, monkeypatch)
    trainer.load_checkpoint(str(path_of(trainer, "best")))
    assert trainer.current_epoch == 2


def test_training_starts_by_removing_what_killed_ones_left(monkeypatch):
    trainer = made()
    process = subprocess.Popen(["true"])
    process.wait()
    from nnunetv2_unimrseg.utils.files import whole_file

    with whole_file(path_of(trainer, "best"), lambda _: None) as temporary:
        temporary.touch()
    number = temporary.name.split("-")[-3]
    left = temporary.with_name(temporary.name.replace(f"-{number}-", f"-{process.pid}-"))
    left.touch()
    start_training(trainer, monkeypatch)
    assert not left.exists()


def test_a_checkpoint_is_taken_up_as_nnunet_does():
    writer = made()
    writer.logger.log("train_losses", 0.5, 0)
    for parameter in writer.network.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    writer.optimizer.step()
    write(writer, latest=1)
    path = str(path_of(writer, "latest"))
    ours, theirs = made(), made()
    ours.load_checkpoint(path)
    nnUNetTrainer.load_checkpoint(theirs, path)
    states = []
    for number, trainer in enumerate((ours, theirs)):
        saved = Path(trainer.output_folder) / f"{number}.pth"
        trainer.current_epoch -= 1
        trainer.save_checkpoint(str(saved))
        states.append(torch.load(saved, weights_only=False))
    assert set(states[0]) == {
        "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch",
        "init_args", "trainer_name", "inference_allowed_mirroring_axes",
    }, "nnU-Net writes more into checkpoints than `restore_state` knows"  # fmt: skip
    names = [[group.pop("param_names") for group in state["optimizer_state"]["param_groups"]] for state in states]
    assert names[0] == names[1]
    for part in ("network_weights", "optimizer_state"):
        torch.testing.assert_close(states[0].pop(part), states[1].pop(part), rtol=0, atol=0)
    for state in states:
        assert state["init_args"].pop("device") == torch.device("cpu")
    assert states[0] == states[1]
    assert states[0]["logging"]["train_losses"] == [0.5]


def test_pictures_that_fail_leave_the_old_ones(tmp_path, monkeypatch):
    logger = ProgressLogger({}, "quality")
    logger.plot_progress_png(str(tmp_path))
    before = (tmp_path / "progress.png").read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: half_written(None)(None, path))
    with pytest.raises(UserError, match="not whole"):
        logger.plot_progress_png(str(tmp_path))
    assert (tmp_path / "progress.png").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.png")] == ["progress.png"]


WHOLE = "whole"


@pytest.mark.parametrize(
    ("checkpoints", "summary", "state"),
    [
        ({}, None, TrainingState.NONE),
        ({}, "{}", TrainingState.NONE),
        ({"latest": WHOLE}, None, TrainingState.STARTED),
        ({"best": WHOLE}, None, TrainingState.STARTED),
        ({"final": WHOLE}, None, TrainingState.UNVALIDATED),
        ({"final": WHOLE}, "{", TrainingState.UNVALIDATED),
        ({"final": WHOLE}, "{}", TrainingState.FINISHED),
        ({"final": WHOLE, "latest": EMPTY}, "{}", TrainingState.FINISHED),
        ({"final": EMPTY, "latest": WHOLE}, "{}", TrainingState.STARTED),
        ({"final": NO_ARCHIVE, "best": WHOLE}, None, TrainingState.STARTED),
        ({"final": EMPTY}, None, TrainingState.STARTED),
        ({"latest": EMPTY, "best": NO_ARCHIVE}, None, TrainingState.STARTED),
    ],
)  # fmt: skip
def test_only_whole_checkpoints_count(tmp_path, checkpoints, summary, state):
    fold = tmp_path / "fold_0"
    (fold / "validation").mkdir(parents=True)
    for name, content in checkpoints.items():
        path = fold / f"checkpoint_{name}.pth"
        torch.save({}, path) if content == WHOLE else path.write_bytes(content)
    if summary is not None:
        (fold / "validation" / "summary.json").write_text(summary)
    assert training_state(fold) is state
    assert training_state(tmp_path / "fold_1") is TrainingState.NONE


GOES_ON = "goes on from the last checkpoint."


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (2, 2, ""),
        (1, 1, f"failed (exit code 1); its message is above. Once its cause is removed, the same command {GOES_ON}"),
        (-9, 137, "was ended by signal 9 (9: often for lack of memory). Running the same command again " + GOES_ON),
    ],
)
def test_running_again_is_advised_only_where_it_helps(monkeypatch, capsys, code, exit_code, said):
    monkeypatch.setattr("nnunetv2_unimrseg.nnunet.stage_training.run_child", lambda words, environment: code)
    monkeypatch.setenv("nnUNet_results", "/nowhere")
    training = StageTraining("Dataset998_Tiny", "3d_fullres", "nnUNetPlans", "0", "stage1", device="cpu")
    with pytest.raises(SystemExit) as end:
        launchers.launch("Dataset998_Tiny", [training], Namespace(launcher=launchers.LOCAL))
    assert end.value.code == exit_code
    assert capsys.readouterr().err == (f"unimrseg train: UniMRSegStage1Trainer {said}\n" if said else "")


def of_another_process(error: Exception) -> ProcessRaisedException:
    try:
        try:
            raise KeyError("first")
        except KeyError as cause:
            raise error from cause
    except Exception:
        text = traceback.format_exc()
    return ProcessRaisedException(f"\n\n-- Process 1 terminated with the following error:\n{text}", 1, 4711)


MESSAGE = "Case 'a' holds label 7.\n  - found: 7\nCorrect it."


@pytest.mark.parametrize("error", [UserError(MESSAGE), of_another_process(UserError(MESSAGE))])
def test_a_users_error_ends_the_training_process_with_its_message_alone(monkeypatch, capsys, error):
    def fail() -> None:
        raise error

    monkeypatch.setattr("nnunetv2.run.run_training.run_training_entry", fail)
    monkeypatch.setattr("sys.argv", [])
    assert training_process.main(["7", "3d_fullres", "0"]) == training_process.USER_ERROR_EXIT_CODE
    assert capsys.readouterr().err == f"unimrseg: error: {MESSAGE}\n"


@pytest.mark.parametrize("error", [ValueError(MESSAGE), of_another_process(ValueError(f"x.UserError: {MESSAGE}"))])
def test_other_errors_pass_through_the_training_process(monkeypatch, error):
    def fail() -> None:
        raise error

    monkeypatch.setattr("nnunetv2.run.run_training.run_training_entry", fail)
    monkeypatch.setattr("sys.argv", [])
    with pytest.raises(type(error)):
        training_process.main([])


@pytest.mark.integration
def test_a_training_that_is_killed_loses_nothing(workspace, tmp_path):
    place = Place(tmp_path / "nnunet", workspace.dataset_name)
    for name in ("raw", "preprocessed"):
        shutil.copytree(getattr(workspace, name), place.root / name)
    plans_file = place.root / "preprocessed" / workspace.dataset_name / f"{workspace.plans}.json"
    plans = json.loads(plans_file.read_text())
    stage2 = workspace.model_folder(TRAINER_OF_SECTION["stage2"]) / "fold_0" / "checkpoint_final.pth"
    plans["configurations"][workspace.configuration]["unimrseg"]["stage3"] = {
        "start_from": str(stage2), "num_epochs": 8, "save_every": 1, "num_iterations_per_epoch": 2,
        "num_val_iterations_per_epoch": 1,
    }  # fmt: skip
    plans_file.write_text(json.dumps(plans))
    kills = [Kill("stage3", moment) for moment in (WRITE, STEP, FINAL)]
    problems = kill_and_resume(place, kills, random.Random(0), tmp_path / "logs")
    assert not problems
    assert sum(kill.phase != NOT_KILLED for kill in kills) >= 2
    assert not [problem for kill in kills for problem in kill.problems]
    assert all(file_problem(path) is None for path in place.fold("stage3").glob("checkpoint_*.pth"))
