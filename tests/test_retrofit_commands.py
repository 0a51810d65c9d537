"""A stock nnU-Net, retrofitted by the commands: complete cases as before, bit for bit; incomplete ones too."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Workspace
from test_training_commands import STOCK_TRAINING, log_of

pytestmark = pytest.mark.integration

RETROFIT, STOCK = "UniMRSegRetrofitTrainer", "nnUNetTrainer"


@pytest.fixture(scope="module")
def retrofitted(workspace: Workspace) -> Workspace:
    """The workspace with nnUNetTrainer trained, and its retrofit."""
    workspace.run(
        "python", "-c", STOCK_TRAINING, workspace.dataset, workspace.configuration, workspace.plans,
        nnUNet_n_proc_DA="0",
    )  # fmt: skip
    start = workspace.model_folder(STOCK) / "fold_0" / "checkpoint_final.pth"
    workspace.set_values("retrofit.initial_lr=0.01")
    workspace.run(
        "unimrseg", "train", workspace.dataset, workspace.configuration, 0, "-p", workspace.plans, "-device", "cpu",
        "--from-checkpoint", start, "--keep-complete", nnUNet_n_proc_DA="0", nnUNet_extTrainer="",
    )  # fmt: skip
    return workspace


def weights(workspace: Workspace, trainer: str) -> dict[str, torch.Tensor]:
    path = workspace.model_folder(trainer) / "fold_0" / "checkpoint_final.pth"
    return torch.load(path, weights_only=False)["network_weights"]


def test_the_checkpoint_keeps_the_trained_networks_weights_bit_for_bit(retrofitted):
    before, after = weights(retrofitted, STOCK), weights(retrofitted, RETROFIT)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    own = {key.removeprefix("incomplete_"): key for key in after if key.startswith("incomplete_decoder.")}
    assert any(not torch.equal(before[key], after[name]) for key, name in own.items())
    assert {key.split(".")[0] for key in after.keys() - before.keys()} == {"adapters", "incomplete_decoder"}
    log = log_of(retrofitted.model_folder(RETROFIT))
    assert f"fold_0{'/'}checkpoint_final.pth" in log.split("Starting from the weights of ")[1].splitlines()[0]
    assert "Gap closed in each encoder stage" in log


def predict(workspace: Workspace, trainer: str, patients: Path, output: Path, *command: str) -> None:
    workspace.run(
        *command, "-i", patients, "-o", output, "-d", workspace.dataset, "-c", workspace.configuration, "-f", 0,
        "-p", workspace.plans, "-tr", trainer, "-device", "cpu", "-npp", 0, "-nps", 0, "--save_probabilities",
    )  # fmt: skip


def contents(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz")))
    return segmentation, np.load(folder / f"{case}.npz")["probabilities"]


def test_complete_cases_are_predicted_as_before_and_incomplete_ones_too(retrofitted, tmp_path):
    patients = tmp_path / "PATIENTS"
    shutil.copytree(retrofitted.raw / retrofitted.dataset_name / "imagesTs", patients)
    cases = sorted({path.name[: -len("_0000.nii.gz")] for path in patients.iterdir()})
    assert len(cases) > 1
    predict(retrofitted, STOCK, patients, tmp_path / "before", "nnUNetv2_predict")
    (patients / f"{cases[0]}_0001.nii.gz").unlink()
    for command in (("nnUNetv2_predict",), ("unimrseg", "predict")):
        after = tmp_path / command[0]
        predict(retrofitted, RETROFIT, patients, after, *command)
        for case in cases:
            pairs = zip(contents(after, case), contents(tmp_path / "before", case), strict=True)
            same = [np.array_equal(ours, theirs) for ours, theirs in pairs]
            assert same == [True, True] if case != cases[0] else same[1] is False, (command, case)


def test_the_retrofit_is_evaluated_like_any_model(retrofitted, tmp_path):
    retrofitted.run(
        "unimrseg", "evaluate", "-d", retrofitted.dataset, "-c", retrofitted.configuration, "-f", 0, "-p",
        retrofitted.plans, "-tr", RETROFIT, "-device", "cpu", "--disable_tta", "--subsets", "single", "complete",
        "-o", tmp_path / "EVALUATION",
    )  # fmt: skip
    assert (tmp_path / "EVALUATION" / "report.html").is_file()


def test_an_unset_start_ends_nnunets_command_with_the_command_to_run(retrofitted):
    retrofitted.set_values('retrofit.start_from=""')
    result = retrofitted.train(RETROFIT, fold=1, check=False)
    assert result.returncode != 0
    assert f"-p {retrofitted.plans} --from-checkpoint PATH --keep-complete" in result.stderr
