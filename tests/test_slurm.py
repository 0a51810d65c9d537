"""`unimrseg train --launcher slurm` on a real SLURM of this one machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PYTHON, Workspace

from nnunetv2_unimrseg.nnunet.training_state import TrainingState, training_state
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm_one_machine.sh"
PREEMPTED, KILLED = 1, 2
"""The folds that are trained; each is interrupted in its own way."""
EPOCHS = 6
MOST_S = 300


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables with which commands use a SLURM of this machine."""
    pytest.importorskip("submitit", reason="submitit is not installed (pip install '.[slurm]')")
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
    if absent or os.geteuid() != 0:
        pytest.skip(f"SLURM needs root and Debian's slurm-wlm and munge; not found: {', '.join(absent) or 'root'}")
    folder = tmp_path / "cluster"
    environment = {**os.environ, "SLURMCTLD_PORT": free_port(), "SLURMD_PORT": free_port()}
    begun = subprocess.run(
        ["bash", str(SCRIPT), "start", str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        if begun.returncode:
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            pytest.skip(f"SLURM does not start here:\n{logs}")
        # the jobs' own processes are SLURM's; the trainings that they start need not import torch anew
        (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.executable = {PYTHON!r}\n")
        yield {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(tmp_path)}
    finally:
        subprocess.run(["scancel", "--user=root"], env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
        subprocess.run(["bash", str(SCRIPT), "stop", str(folder)], check=True)


def wait_for(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + MOST_S
    while not happened():
        assert time.monotonic() < deadline, f"not within {MOST_S} s: {what}"
        time.sleep(0.2)


class Jobs:
    """Submits trainings of folds, and looks after their jobs."""

    def __init__(self, workspace: Workspace, cluster: dict[str, str]) -> None:
        self.workspace, self.environment = workspace, {**cluster, "nnUNet_n_proc_DA": "0"}

    def submit(self, fold: int) -> list[str]:
        """Submit what is not finished of a fold; return the numbers of the jobs, in the order of the stages."""
        result = self.workspace.run(
            "unimrseg", "train", self.workspace.dataset, self.workspace.configuration, fold,
            "-p", self.workspace.plans, "-device", "cpu", "--launcher", "slurm",
            "--slurm-cpus", 1, "--slurm-time", 30, "--slurm-partition", "all", **self.environment,
        )  # fmt: skip
        return result.stdout.partition("Submitted the jobs ")[2].partition(".")[0].split(", ")

    def slurm(self, *words: str) -> str:
        return self.workspace.run(*words, **self.environment).stdout

    def waiting(self) -> list[str]:
        return self.slurm("squeue", "--noheader", "--format=%i").split()

    def log(self, job: str) -> str:
        folder = self.workspace.results / self.workspace.dataset_name / "slurm_jobs"
        return "\n".join(path.read_text() for path in sorted(folder.glob(f"{job}_0_log.*")))

    def folder(self, stage: str, fold: int) -> Path:
        return self.workspace.model_folder(TRAINER_OF_SECTION[stage]) / f"fold_{fold}"


def test_jobs_wait_for_each_other_and_go_on_where_they_were_interrupted(workspace, cluster, tmp_path):
    shared, workspace = workspace, Workspace(tmp_path / "nnunet")
    shutil.copytree(shared.root, workspace.root, ignore=shutil.ignore_patterns("fold_[1-9]"))  # others' trainings
    jobs = Jobs(workspace, cluster)
    start = workspace.model_folder(TRAINER_OF_SECTION["stage1"]) / "fold_0" / "checkpoint_final.pth"
    workspace.set_values(f"stage2.start_from={start}", f"stage2.num_epochs={EPOCHS}", "stage2.save_every=1")
    submitted = {fold: jobs.submit(fold) for fold in (PREEMPTED, KILLED)}
    assert all(len(numbers) == 2 for numbers in submitted.values())
    for fold, (second_stage, third_stage) in submitted.items():
        details = jobs.slurm("scontrol", "show", "job", third_stage)
        assert f"Dependency=afterok:{second_stage}" in details
        wait_for((jobs.folder("stage2", fold) / "checkpoint_latest.pth").is_file, f"a checkpoint of fold {fold}")
        jobs.slurm("scancel", "--signal=USR2" if fold == PREEMPTED else "--signal=KILL", second_stage)
    # a killed job takes those along that wait for it; submitting again goes on
    wait_for(lambda: submitted[KILLED][1] not in jobs.waiting(), "the end of the jobs of the killed fold")
    assert training_state(jobs.folder("stage2", KILLED)) is TrainingState.STARTED
    again = jobs.submit(KILLED)
    assert jobs.submit(KILLED) != again  # which does no harm: equal jobs run one after another
    wait_for(lambda: not jobs.waiting(), "the end of all jobs")
    for fold in (PREEMPTED, KILLED):
        for stage in ("stage2", "stage3"):
            assert training_state(jobs.folder(stage, fold)) is TrainingState.FINISHED, jobs.log(submitted[fold][0])
    assert "Requeued job" in jobs.log(submitted[PREEMPTED][0])
    for number in (submitted[PREEMPTED][0], again[0]):
        assert "the newest whole checkpoint, after " in jobs.log(number)
        assert jobs.log(number).count("Validation complete") == 1
