"""Trainings as SLURM jobs: which waits for which, and their submission through submitit.

A job that is preempted, or whose time is over, puts itself into the queue again and continues its training there.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.stage_training import StageTraining
from nnunetv2_unimrseg.nnunet.training_state import TrainingState

MOST_TIMEOUTS = 1000
"""So often a job continues in the queue when its time is over."""

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")

_WAIT_FOR_HANDLER_S = 60.0


def minutes(text: str) -> int:
    """Return a time limit in minutes, rounded up, from one as SLURM writes it: "90", "30:00", "24:00:00", "2-12".

    Raises:
        UserError: for anything else, and for no time.
    """
    match = _TIME.fullmatch(text)
    numbers = [int(number) for number in match["parts"].split(":")] if match else [0]
    if match and (match["days"] or len(numbers) == 3):  # [days-]hours[:minutes[:seconds]]
        hours, mins, seconds = [*numbers, 0, 0][:3]
    else:  # minutes[:seconds]
        hours, (mins, seconds) = 0, [*numbers, 0][:2]
    days = int(match["days"] or 0) if match else 0
    total = (days * 24 + hours) * 60 + mins + -(-seconds // 60)
    if total == 0:
        raise UserError(f"--slurm-time must be a time such as 24:00:00 or 2-12 (days-hours), found '{text}'.")
    return total


@dataclass(frozen=True)
class JobResources:
    """What each job gets.

    Attributes:
        time_limit: in minutes.
        options: options of sbatch without the dashes -> value; None for those that have none.
    """

    time_limit: int
    options: Mapping[str, str | None] = field(default_factory=dict)

    def sbatch_words(self) -> list[str]:
        """Return the options as sbatch takes them."""
        words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in self.options.items()]
        return [f"--time={self.time_limit}", *words]


@dataclass(frozen=True)
class StageJob:
    """What a SLURM job runs: one stage of one fold, from wherever it stands. submitit pickles it."""

    training: StageTraining

    @property
    def name(self) -> str:
        """Name of the job, by which SLURM lets only one of them run at a time."""
        training = self.training
        where = f"{training.dataset}-{training.configuration}-{training.plans}"
        return f"{where}-fold{training.fold}-{training.stage}"

    def __call__(self) -> None:
        """Train.

        Raises:
            SystemExit: when that fails; the jobs that wait for this one are then cancelled.
        """
        state = self.training.state()
        if state is TrainingState.FINISHED:
            print(f"{self.training.stage} is finished already: {self.training.folder}", flush=True)
            return
        code = self.training.run(state)
        if code == -signal.SIGUSR2:  # SLURM announces the end to every process; here submitit's handler takes over
            time.sleep(_WAIT_FOR_HANDLER_S)
        if code:
            raise SystemExit(abs(code))

    def checkpoint(self) -> Any:
        """Return what submitit puts into the queue when this job must make room: the same, since it continues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def with_predecessors(
    trainings: Sequence[StageTraining],
) -> Iterator[tuple[StageTraining, StageTraining | None]]:
    """Yield each training with the one it starts from: the stage before it of its fold, where that is among them."""
    for _, stages in groupby(trainings, key=lambda training: training.fold):
        before = None
        for training in stages:
            yield training, before
            before = training


def plan_table(trainings: Sequence[StageTraining]) -> str:
    """Return a table with one line a job: what it trains, what it waits for, its command."""
    rows = [("job", "depends on", "command")]
    for training, before in with_predecessors(trainings):
        command = f"nnUNetv2_train {' '.join(training.arguments())}"
        rows.append((_label(training), _label(before) if before else "-", command))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {after:<{widths[1]}}  {command}" for name, after, command in rows)


def _label(training: StageTraining) -> str:
    return f"fold {training.fold}, {training.stage}"


def submit(trainings: Sequence[StageTraining], resources: JobResources, folder: Path) -> list[str]:
    """Submit one job a training, and return their numbers.

    A job waits for the one that its training starts from, and for an earlier one of the same training, so that
    submitting twice does no harm.

    Args:
        trainings: those of a fold follow each other, in the order of the stages.
        resources: of each job.
        folder: where all machines see the jobs and their logs.

    Raises:
        UserError: when SLURM or submitit is not there, or SLURM refuses a job.
    """
    if shutil.which("sbatch") is None:
        raise UserError("There is no sbatch here. Run the command where SLURM jobs are submitted, or add: --dry-run")
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise UserError(
            "--launcher slurm needs submitit. Install it: pip install 'nnunetv2-unimrseg[slurm]'"
        ) from error
    executor = SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
    numbers: dict[StageTraining, str] = {}
    for training, before in with_predecessors(trainings):
        job = StageJob(training)
        executor.update_parameters(
            job_name=job.name,
            time=resources.time_limit,
            dependency=f"afterok:{numbers[before]},singleton" if before else "singleton",
            setup=['export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'],  # srun does not inherit it since 22.05
            additional_parameters={
                "requeue": True,
                "kill-on-invalid-dep": "yes",
                **{name: True if value is None else value for name, value in resources.options.items()},
            },
        )
        try:
            numbers[training] = executor.submit(job).job_id
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            done = f" The jobs {', '.join(numbers.values())} are submitted." if numbers else ""
            raise UserError(f"SLURM refused the job of {_label(training)}: {error}{done}") from error
    return list(numbers.values())
