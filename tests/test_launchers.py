"""Where trainings run: SLURM's times, jobs and their signals, and the process that torchrun starts."""

from __future__ import annotations

import pickle
import signal
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet import slurm
from nnunetv2_unimrseg.nnunet.stage_training import StageTraining
from nnunetv2_unimrseg.nnunet.torchrun_training import check_started_by_torchrun, rank_device
from nnunetv2_unimrseg.nnunet.training_state import TrainingState
from nnunetv2_unimrseg.trainers.distributed import distribute
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer

TRAINING = StageTraining("Dataset998_Tiny", "3d_fullres", "nnUNetPlans", "0", "stage2", device="cpu")
ENVIRONMENT = {
    "RANK": "1",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("30:01", 31), ("24:00:00", 1440), ("1:30:30", 91), ("2-12", 3600), ("1-00:30", 1470), ("0-0:0:1", 1)],
)
def test_time_limits_are_read_as_slurm_reads_them(text, minutes):
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "24h", "1:2:3:4", "-1"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(UserError, match="--slurm-time"):
        slurm.minutes(text)


def test_a_job_goes_through_a_pickle_and_into_the_queue_again():
    submitit = pytest.importorskip("submitit", reason="pip install '.[slurm]'")
    job = slurm.StageJob(TRAINING)
    assert pickle.loads(pickle.dumps(job)) == job
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.function == job


@pytest.mark.parametrize(("code", "ends_with"), [(0, None), (2, 2), (-9, 9), (-signal.SIGUSR2, signal.SIGUSR2)])
def test_a_job_fails_where_its_training_does(monkeypatch, code, ends_with):
    waited = []
    monkeypatch.setattr(slurm.time, "sleep", waited.append)
    monkeypatch.setattr(StageTraining, "state", lambda _: TrainingState.STARTED)
    monkeypatch.setattr(StageTraining, "run", lambda _, state: code)
    if ends_with is None:
        slurm.StageJob(TRAINING)()
    else:
        with pytest.raises(SystemExit) as end:
            slurm.StageJob(TRAINING)()
        assert end.value.code == ends_with
    assert bool(waited) == (code == -signal.SIGUSR2)


def test_a_job_whose_stage_is_finished_does_nothing(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", "/nowhere")
    monkeypatch.setattr(StageTraining, "state", lambda _: TrainingState.FINISHED)
    monkeypatch.setattr(StageTraining, "run", lambda *_: pytest.fail("it was trained again"))
    slurm.StageJob(TRAINING)()
    assert "stage2 is finished already" in capsys.readouterr().out


def test_jobs_need_sbatch(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        slurm.submit([TRAINING], slurm.JobResources(60), tmp_path)


def test_jobs_need_submitit(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/usr/bin/sbatch")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'nnunetv2-unimrseg\[slurm\]'"):
        slurm.submit([TRAINING], slurm.JobResources(60), tmp_path)


def test_a_process_that_torchrun_started_is_accepted():
    check_started_by_torchrun("cuda", 2, ENVIRONMENT)


@pytest.mark.parametrize(
    ("device", "batch_size", "changes", "message"),
    [
        ("cuda", 2, {"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ("mps", 2, {}, "found -device mps"),
        ("cuda", 2, {"WORLD_SIZE": "3"}, "3 processes, and the batch of the plans has 2 samples"),
    ],
)
def test_other_processes_are_refused(device, batch_size, changes, message):
    with pytest.raises(UserError, match=message):
        check_started_by_torchrun(device, batch_size, {**ENVIRONMENT, **changes})


def test_a_process_takes_the_gpu_of_its_own_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert rank_device("cuda") == torch.device("cuda", 1)
    assert rank_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="CUDA device 1 of this machine, and torch finds 1"):
        rank_device("cuda")


def trainer_on_second_machine(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.cuda.is_available = lambda: True
    devices = [str(tiny.trainer(UniMRSegStage2Trainer, device=device).device) for device in ("cuda:0", "cuda", "cpu")]
    made = tiny.trainer(UniMRSegStage2Trainer)
    made.initialize()
    assert made.is_ddp and made.local_rank == rank and made.grad_scaler is None
    torch.save({"devices": devices, "batch": made.batch_size, "network": type(made.network)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_a_trainer_on_a_second_machine_uses_the_device_it_is_given(tmp_path: Path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    data = tmp_path / "Dataset998_Tiny" / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()
    mp.spawn(trainer_on_second_machine, args=(str(tmp_path),), nprocs=2, join=True)
    second = torch.load(tmp_path / "1.pt", weights_only=False)
    assert second["devices"] == ["cuda:0", "cuda:1", "cpu"]  # nnU-Net's choice where no number is given
    assert second["batch"] == 1
    assert second["network"] is torch.nn.parallel.DistributedDataParallel


def test_a_cpu_network_keeps_its_batch_normalisation(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = distribute(torch.nn.Sequential(torch.nn.BatchNorm3d(1)), torch.device("cpu"))
        network(torch.randn(1, 1, 2, 2, 2))  # synchronised layers work on GPUs only
    finally:
        dist.destroy_process_group()
