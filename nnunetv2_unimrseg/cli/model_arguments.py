"""The arguments that commands with a trained model share, under nnU-Net's names."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import find_dataset, result_folder

if TYPE_CHECKING:
    import torch

    from nnunetv2_unimrseg.inference.options import InferenceOptions


def add_model_arguments(parser: argparse.ArgumentParser, trainer: str, folds: str) -> None:
    """Declare -d -c -p -tr -f -m -chk.

    Args:
        parser: to declare them in.
        trainer: the default of -tr.
        folds: what is done with the folds, for the help.
    """
    add = parser.add_argument
    add("-d", metavar="DATASET", help="dataset name or number of the trained model")
    add("-c", metavar="CONFIGURATION", help="nnU-Net configuration of the trained model, such as 3d_fullres")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    add("-tr", default=trainer, metavar="TRAINER", help="trainer of the model (default: %(default)s)")
    add("-m", metavar="MODEL_FOLDER", help="folder of the trained model (with fold_X in it), instead of -d and -c")
    default = ["0", "1", "2", "3", "4"]
    add("-f", nargs="+", default=default, metavar="FOLD", help=f"{folds}, numbers or 'all' (default: 0 1 2 3 4)")
    add("-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint to use (default: %(default)s)")


def model_folder(args: argparse.Namespace) -> str:
    """Return the folder of the model that the arguments name.

    Raises:
        UserError: when they name none, or two, or an unknown dataset.
    """
    if args.m is not None:
        if args.d is not None or args.c is not None:
            raise UserError(
                "-m names the model's folder, so -d and -c cannot be given too. Leave one or the other out."
            )
        return str(args.m)
    if args.d is None or args.c is None:
        raise UserError("Which model? Give -d DATASET -c CONFIGURATION, or -m MODEL_FOLDER.")
    dataset = find_dataset(args.d, "nnUNet_results")
    return str(result_folder(dataset, args.tr, args.p, args.c))


def add_prediction_arguments(parser: argparse.ArgumentParser, unit: str) -> None:
    """Declare -step_size --disable_tta -npp -nps -num_parts -part_id -device --disable_progress_bar --not_on_device.

    Args:
        parser: to declare them in.
        unit: what -npp and -nps count, "processes" or "threads".
    """
    add = parser.add_argument
    add(
        "-step_size",
        type=float,
        default=0.5,
        help="step of the sliding window as a share of its size, larger than 0, at most 1 (default: %(default)s)",
    )
    add("--disable_tta", action="store_true", help="no mirroring at test time: faster, less accurate")
    add(
        "-npp",
        type=int,
        default=number_from_environment("nnUNet_npp", 3),
        help=f"{unit} for preprocessing (default: %(default)s); 0, with -nps 0, uses no other {unit}",
    )
    add(
        "-nps",
        type=int,
        default=number_from_environment("nnUNet_nps", 3),
        help=f"{unit} for export (default: %(default)s)",
    )
    add("-num_parts", type=int, default=1, help="split the cases among so many calls (default: %(default)s)")
    add("-part_id", type=int, default=0, help="which of them this call is, from 0 (default: %(default)s)")
    add("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="where to compute (default: %(default)s)")
    add("--disable_progress_bar", action="store_true", help="no progress bars")
    add("--not_on_device", action="store_true", help="keep results in CPU memory, for cases too large for the GPU's")


def inference_options(args: argparse.Namespace) -> InferenceOptions:
    """Return the options that the arguments of `add_model_arguments` and `add_prediction_arguments` give."""
    from nnunetv2_unimrseg.inference.options import InferenceOptions

    return InferenceOptions(
        checkpoint=args.chk,
        use_mirroring=not args.disable_tta,
        step_size=args.step_size,
        device=select_device(args.device),
        perform_everything_on_device=not args.not_on_device,
        num_threads_preprocessing=args.npp,
        num_threads_export=args.nps,
        num_parts=args.num_parts,
        part_id=args.part_id,
        show_progress=not args.disable_progress_bar,
    )


def number_from_environment(variable: str, default: int) -> int:
    """Read a number (of processes, of threads) as nnU-Net does: what is no number is ignored."""
    try:
        return int(os.environ.get(variable) or default)
    except ValueError:
        return default


def select_device(name: str) -> torch.device:
    """Return the device of this name, and use as many threads on it as nnU-Net does.

    Raises:
        UserError: when torch does not find it.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here. Compute on the CPU with `-device cpu` (slower).")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch finds no MPS device here. Compute on the CPU with `-device cpu` (slower).")
    if name == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    elif name == "cuda":
        torch.set_num_threads(1)
    return torch.device(name)
