"""nnU-Net's training in one of the processes that torchrun starts, on the GPUs or CPUs of one or several machines.

    torchrun --nnodes 2 ... -m nnunetv2_unimrseg.nnunet.torchrun_training 900 3d_fullres 0 -tr UniMRSegStage1Trainer

takes the arguments of nnUNetv2_train. nnU-Net's own `-num_gpus` starts processes on one machine only. All machines must
see the same nnUNet_preprocessed and nnUNet_results.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.discovery import VARIABLE, append_extension_folder
from nnunetv2_unimrseg.nnunet.training_process import exit_code

if TYPE_CHECKING:
    import torch

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts."""

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
"""How processes exchange gradients, by device."""


def check_started_by_torchrun(device: str, batch_size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Check that torchrun's variables are there and that training can be divided among so many processes.

    Raises:
        UserError: otherwise.
    """
    absent = [name for name in VARIABLES if not environment.get(name)]
    if absent:
        raise UserError(
            f"Training in a process group needs the variables that torchrun sets, and {', '.join(absent)} are not "
            "set. Start it with torchrun on each machine, for example on the first of two:\n"
            "  torchrun --nnodes 2 --node-rank 0 --nproc-per-node 1 --master-addr FIRST_MACHINE --master-port 29500 "
            "--no-python unimrseg train ... --launcher torchrun"
        )
    if device not in BACKENDS:
        raise UserError(f"torchrun needs -device cuda or -device cpu, found -device {device}.")
    world_size = int(environment["WORLD_SIZE"])
    if world_size > batch_size:
        raise UserError(
            f"torchrun started {world_size} processes, and the batch of the plans has {batch_size} samples, of which "
            "each process needs one at least. Start fewer, or make plans with a larger batch."
        )


def rank_device(device: str) -> torch.device:
    """Return the device of this process: on CUDA the GPU of this machine whose number is LOCAL_RANK.

    Raises:
        UserError: when this machine has no such GPU.
    """
    import torch

    if device == "cpu":
        return torch.device("cpu")
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started a process for CUDA device {number} of this machine, and torch finds "
            f"{torch.cuda.device_count()}. Lower --nproc-per-node" + (", or add: -device cpu" if not number else ".")
        )
    return torch.device("cuda", number)


@contextmanager
def process_group(name: str, device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, for one training.

    Args:
        name: of the training: the store that torchrun keeps from one training to the next holds addresses under it.
        device: of this process.
    """
    import torch
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    store, rank, world_size = next(iter(rendezvous("env://")))
    dist.init_process_group(
        BACKENDS[device.type],
        store=PrefixStore(name, store),
        rank=rank,
        world_size=world_size,
    )
    yield
    dist.barrier()  # the first to leave would end the connections of the others
    dist.destroy_process_group()


def main(arguments: list[str]) -> int:
    """Train as nnUNetv2_train does and return the exit code (see `exit_code`)."""
    args = _parser().parse_args(arguments)
    os.environ[VARIABLE] = append_extension_folder(os.environ.get(VARIABLE))
    return exit_code(lambda: train(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrun_training", description="Arguments as of nnUNetv2_train.")
    parser.add_argument("dataset_name_or_id")
    parser.add_argument("configuration")
    parser.add_argument("fold")
    parser.add_argument("-tr", required=True)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-pretrained_weights")
    parser.add_argument("-device", choices=tuple(BACKENDS), default="cuda")
    parser.add_argument("-num_gpus", type=int, choices=(1,), default=1, help="torchrun says how many")
    for flag in ("--npz", "--c", "--val", "--val_best", "--disable_checkpointing"):
        parser.add_argument(flag, action="store_true")
    return parser


def train(args: argparse.Namespace) -> None:
    """Train and validate in this process, together with the others.

    Raises:
        UserError: before the processes join, when torchrun did not start this one, and for a trainer of others.
    """
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    from torch.backends import cudnn

    check_started_by_torchrun(args.device, sys.maxsize)
    device = rank_device(args.device)
    fold = args.fold if args.fold == "all" else int(args.fold)
    with process_group(f"{args.tr} {args.fold}", device):
        trainer = get_trainer_from_args(
            args.dataset_name_or_id, args.configuration, fold, args.tr, args.p, args.c, device
        )
        if trainer.device != device:
            raise UserError(
                f"{args.tr} takes its number among all processes for the number of a GPU, which is wrong on the second "
                "machine. Only the trainers of this package run under torchrun."
            )
        trainer.disable_checkpointing |= args.disable_checkpointing
        maybe_load_checkpoint(trainer, args.c, args.val, args.pretrained_weights)
        cudnn.deterministic, cudnn.benchmark = False, True
        if not args.val:
            trainer.run_training()
        if args.val_best:
            trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
        trainer.perform_actual_validation(args.npz)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
