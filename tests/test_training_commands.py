"""The three stages and the control through stock nnUNetv2_train, on the trained tiny phantom."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration

STAGE1, STAGE2, STAGE3 = (f"UniMRSegStage{number}Trainer" for number in (1, 2, 3))
CONTROL = "UniMRSegModalityDropoutTrainer"

STOCK_TRAINING = """
import sys, torch
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args(sys.argv[1], sys.argv[2], 0, "nnUNetTrainer", sys.argv[3], device=torch.device("cpu"))
trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
trainer.run_training()
"""


def weights(folder: Path, fold: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)["network_weights"]


def log_of(folder: Path, fold: int = 0) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / f"fold_{fold}").glob("training_log_*.txt")))


@pytest.fixture(scope="module")
def stock_checkpoint(workspace) -> Path:
    """A checkpoint of nnUNetTrainer itself, of the same plans."""
    workspace.run(
        "python", "-c", STOCK_TRAINING, workspace.dataset, workspace.configuration, workspace.plans,
        nnUNet_n_proc_DA="0",
    )  # fmt: skip
    return workspace.model_folder("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"


@pytest.mark.parametrize("trainer", [STAGE1, STAGE2, STAGE3, CONTROL])
def test_training_leaves_what_nnunet_leaves(workspace, trainer):
    folder = workspace.model_folder(trainer)
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_0/checkpoint_best.pth"):
        assert (folder / name).is_file(), name
    for name in ("fold_0/progress.png", "fold_0/validation/summary.json"):
        assert (folder / name).stat().st_size > 0, name


def test_log_names_the_checkpoint_that_a_stage_starts_from(workspace):
    for trainer, previous in ((STAGE2, STAGE1), (STAGE3, STAGE2)):
        expected = workspace.model_folder(previous) / "fold_0" / "checkpoint_final.pth"
        from_there = expected.relative_to(workspace.results)  # the workspace is a copy of the one that was trained
        assert re.search(
            f"Starting from the weights of .*{re.escape(str(from_there))}", log_of(workspace.model_folder(trainer))
        )


def test_stage_3_encoder_equals_stage_2_bit_for_bit(workspace):
    before, after = weights(workspace.model_folder(STAGE2)), weights(workspace.model_folder(STAGE3))
    encoder = [key for key in before if key.startswith("encoder.")]
    assert encoder and all(torch.equal(before[key], after[key]) for key in encoder)
    learned = [key for key in before if key.startswith("decoder.") and not key.startswith("decoder.encoder.")]
    assert any(not torch.equal(before[key], after[key]) for key in learned)
    assert any(key.startswith("adapters.") and key.endswith("scale") and after[key].any() for key in after)


def test_stage_2_checkpoint_has_keys_and_shapes_of_a_stock_one(workspace, stock_checkpoint):
    stock = torch.load(stock_checkpoint, weights_only=False)["network_weights"]
    for trainer in (STAGE2, CONTROL):
        ours = weights(workspace.model_folder(trainer))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in stock.items()}


def test_stage_1_reports_reconstruction_not_dice(workspace):
    folder = workspace.model_folder(STAGE1)
    log = log_of(folder).lower()
    assert "reconstruction of corrupted validation patches: l1" in log
    assert "pseudo dice" not in log
    assert (folder / "fold_0" / "reconstruction.png").stat().st_size > 0
    summary = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["mean"]) == 14
    assert set(summary["mean"]["FLAIR+T1"]["T2"]) == {"L1", "PSNR", "SSIM"}
    assert not list((folder / "fold_0" / "validation").glob("*.nii.gz"))


@pytest.mark.parametrize("trainer", [STAGE2, STAGE3, CONTROL])
def test_pseudo_dice_is_reported_for_complete_and_incomplete_input(workspace, trainer):
    log = log_of(workspace.model_folder(trainer))
    assert "Pseudo dice, complete input" in log
    assert "Pseudo dice, incomplete input" in log
    checkpoint = torch.load(workspace.model_folder(trainer) / "fold_0" / "checkpoint_final.pth", weights_only=False)
    values = {key: series[0] for key, series in checkpoint["logging"].items()}
    assert values["mean_fg_dice"] == pytest.approx((values["dice_complete"] + values["dice_incomplete"]) / 2)


def test_missing_stage_is_one_error_with_the_command_to_run(workspace):
    result = workspace.train(STAGE3, fold=3, check=False)
    assert result.returncode != 0
    assert f"-tr {STAGE2} -p {workspace.plans} -device cpu" in result.stderr
    assert str(workspace.model_folder(STAGE2) / "fold_3") in result.stderr


def test_continue_resumes_and_keeps_earlier_work(workspace):
    workspace.train(STAGE1, fold=1)
    folder = workspace.model_folder(STAGE1) / "fold_1"
    workspace.set_values("stage1.num_epochs=2")
    try:
        (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
        result = workspace.train(STAGE1, "--c", fold=1)
    finally:
        workspace.set_values("stage1.num_epochs=1")
    assert "Epoch 1" in result.stdout
    assert "Epoch 0" not in result.stdout
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 2
    assert len(checkpoint["logging"]["val_l1"]) == 2


def test_continue_without_a_checkpoint_starts_from_the_previous_stage(workspace):
    source = workspace.model_folder(STAGE1) / "fold_0"
    target = workspace.model_folder(STAGE1) / "fold_2"
    target.mkdir(exist_ok=True)
    shutil.copy(source / "checkpoint_final.pth", target)
    workspace.train(STAGE2, "--c", fold=2)
    expected = target / "checkpoint_final.pth"
    assert f"Starting from the weights of {expected}" in log_of(workspace.model_folder(STAGE2), fold=2)


def test_pretrained_weights_replace_the_previous_stage(workspace, stock_checkpoint):
    result = workspace.train(STAGE2, "-pretrained_weights", stock_checkpoint, fold=4)
    assert "Loading pretrained weights from file" in result.stdout
    assert "Starting from the weights of" not in result.stdout


@pytest.mark.parametrize(("section", "trainer"), [("stage2", STAGE2), ("stage3", STAGE3)])
def test_stages_start_from_a_stock_checkpoint(workspace, stock_checkpoint, section, trainer):
    path = str(stock_checkpoint).replace("fold_0", "fold_{fold}")
    other_fold = stock_checkpoint.parents[1] / "fold_3"
    other_fold.mkdir(exist_ok=True)
    shutil.copy(stock_checkpoint, other_fold)
    workspace.set_values(f"{section}.start_from={path}")
    try:
        workspace.train(trainer, fold=3)
    finally:
        workspace.set_values(f'{section}.start_from=""')
    started = log_of(workspace.model_folder(trainer), fold=3)
    assert f"Starting from the weights of {other_fold / 'checkpoint_final.pth'}" in started
    if trainer == STAGE3:
        stock = torch.load(stock_checkpoint, weights_only=False)["network_weights"]
        ours = weights(workspace.model_folder(STAGE3), fold=3)
        assert all(torch.equal(stock[key], ours[key]) for key in stock if key.startswith("encoder."))


def test_a_truncated_checkpoint_is_named(workspace):
    folder = workspace.model_folder(STAGE1) / "fold_4"
    folder.mkdir(exist_ok=True)
    whole = (workspace.model_folder(STAGE1) / "fold_0" / "checkpoint_final.pth").read_bytes()
    (folder / "checkpoint_final.pth").write_bytes(whole[: len(whole) // 2])
    result = workspace.train(STAGE2, fold=4, check=False)
    assert result.returncode != 0
    assert f"The checkpoint {folder / 'checkpoint_final.pth'} cannot be read" in result.stderr


def test_unknown_configuration_keys_stop_before_anything_is_written(workspace):
    plans_file = workspace.preprocessed / workspace.dataset_name / f"{workspace.plans}.json"
    original = plans_file.read_text()
    plans = json.loads(original)
    plans["configurations"][workspace.configuration]["unimrseg"]["stage1"]["num_epoch"] = 3
    plans["configurations"][workspace.configuration]["unimrseg"]["stage2"]["temperature"] = -1
    plans_file.write_text(json.dumps(plans))
    before = sorted(workspace.results.rglob("*"))
    try:
        result = workspace.train(STAGE1, fold=0, check=False)
    finally:
        plans_file.write_text(original)
    assert result.returncode != 0
    assert "unknown key 'stage1.num_epoch'. Did you mean 'num_epochs'?" in result.stderr
    assert "stage2.temperature = -1" in result.stderr
    assert sorted(workspace.results.rglob("*")) == before


def test_unset_results_folder_is_one_clear_error(workspace):
    result = workspace.run(
        "env", "-u", "nnUNet_results", "nnUNetv2_train", workspace.dataset, workspace.configuration, 0, "-tr", STAGE1,
        "-p", workspace.plans, "-device", "cpu", check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "nnUNet_results is not set" in result.stderr


def test_model_travels_in_nnunets_zip(workspace, tmp_path):
    zip_file = tmp_path / "model.zip"
    workspace.run(
        "nnUNetv2_export_model_to_zip", "-d", workspace.dataset, "-o", zip_file, "-c", workspace.configuration,
        "-tr", STAGE3, "-p", workspace.plans, "-f", 0,
    )  # fmt: skip
    assert zip_file.stat().st_size > 0
