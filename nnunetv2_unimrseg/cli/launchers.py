"""Where trainings run: here one after another, in the processes that torchrun started, or as SLURM jobs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2_unimrseg.data.splits import FOLDS
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet import slurm
from nnunetv2_unimrseg.nnunet.paths import fold_name, nnunet_folder
from nnunetv2_unimrseg.nnunet.stage_training import StageTraining
from nnunetv2_unimrseg.nnunet.torchrun_training import check_started_by_torchrun
from nnunetv2_unimrseg.nnunet.training_state import TrainingState

LOCAL, TORCHRUN, SLURM = LAUNCHERS = ("local", "torchrun", "slurm")

ALL_FOLDS = "all-folds"

SIGNAL_EXIT_CODE = 128
"""Added to the number of the signal that ended a stage, as shells do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say where trainings run."""
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default=LOCAL,
        help="local: here (default); torchrun: with the other processes that torchrun started; slurm: as SLURM jobs",
    )
    parser.add_argument("--dry-run", action="store_true", help="with slurm: print the jobs, submit none")
    parser.add_argument("--slurm-partition", metavar="NAME", help="partition of the jobs")
    parser.add_argument(
        "--slurm-time",
        metavar="TIME",
        default="24:00:00",
        help="time limit as SLURM writes it, after which a job goes on in the queue (default: 24:00:00)",
    )
    parser.add_argument("--slurm-gpus", metavar="GPUS", help="GPUs of a job, such as 1 or a100:1 (default: -num_gpus)")
    parser.add_argument("--slurm-cpus", metavar="N", type=int, help="processors of a job")
    parser.add_argument("--slurm-mem", metavar="SIZE", help="memory of a job, such as 64G")
    parser.add_argument(
        "--slurm-option",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further options of sbatch without the dashes, such as account=lab exclusive",
    )


def fold_names(text: str) -> tuple[str, ...]:
    """Return the names of the folds to train: nnU-Net's five for "all-folds", otherwise the one.

    Raises:
        UserError: for anything that is neither "all-folds" nor a fold.
    """
    return tuple(map(str, range(FOLDS))) if text == ALL_FOLDS else (fold_name(text),)


def check(args: argparse.Namespace, batch_size: int) -> None:
    """Check what the launcher needs.

    Raises:
        UserError: when torchrun did not start this process, or options do not fit the launcher.
    """
    if args.launcher == TORCHRUN:
        if args.num_gpus != 1:
            raise UserError("-num_gpus cannot be combined with torchrun: its --nproc-per-node says how many GPUs.")
        check_started_by_torchrun(args.device, batch_size)
    if args.launcher == SLURM:
        _job_resources(args)
    elif args.dry_run:
        raise UserError("--dry-run needs --launcher slurm.")


def launch(dataset: str, trainings: Sequence[StageTraining], args: argparse.Namespace) -> bool:
    """Train what is not finished, or submit it; return whether all is trained now and this process should say so.

    Raises:
        SystemExit: with the exit code of a stage that fails.
        UserError: when SLURM or submitit is not there, or SLURM refuses a job.
    """
    speaks = args.launcher != TORCHRUN or os.environ["RANK"] == "0"
    unfinished = []
    for training in trainings:
        state = training.state()
        if state is TrainingState.FINISHED:
            if speaks:
                print(f"{training.stage} is finished already: {training.folder}", flush=True)
        elif args.launcher == SLURM:
            unfinished.append(training)
        else:
            code = training.run(state)
            if code:
                raise SystemExit(code if code > 0 else SIGNAL_EXIT_CODE - code)
    if not unfinished:
        return speaks
    resources = _job_resources(args)
    print(slurm.plan_table(unfinished))
    print(f"sbatch options of each job: {' '.join(resources.sbatch_words())}")
    if not args.dry_run:
        folder = nnunet_folder("nnUNet_results") / dataset / "slurm_jobs"
        numbers = slurm.submit(unfinished, resources, folder)
        print(f"Submitted the jobs {', '.join(numbers)}. Their logs: {folder}\nSee them with: squeue --me")
    return False


def _job_resources(args: argparse.Namespace) -> slurm.JobResources:
    gpus = args.slurm_gpus or (str(args.num_gpus) if args.device == "cuda" else None)
    named = {
        "partition": args.slurm_partition,
        "gpus-per-node": gpus,
        "cpus-per-task": args.slurm_cpus,
        "mem": args.slurm_mem,
    }
    options: dict[str, str | None] = {name: str(value) for name, value in named.items() if value is not None}
    for entry in args.slurm_option:
        name, equals, value = entry.lstrip("-").partition("=")
        options[name] = value if equals else None
    return slurm.JobResources(slurm.minutes(args.slurm_time), options)
