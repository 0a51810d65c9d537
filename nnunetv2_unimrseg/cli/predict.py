"""Segment cases that have any subset of the modalities.

Takes nnU-Net's flags. All cases are checked first, every problem is listed at once, and modalities.json beside the
segmentations says which modalities each case had; report.html and report.json say too what Dice to expect with them,
where the model was evaluated (`unimrseg evaluate`). `--modalities` uses only those named.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.folders import find_dataset, fold_name, result_folder
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg predict`: those of nnUNetv2_predict, -m and --modalities."""
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER", help="input folder; files are named CASE_XXXX.ending, any subset a case")
    add("-o", required=True, metavar="FOLDER", help="output folder; made if needed")
    add("-d", metavar="DATASET", help="dataset name or number of the trained model")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    add(
        "-tr",
        default=TRAINER_OF_SECTION["stage3"],
        metavar="TRAINER",
        help="trainer of the model (default: %(default)s)",
    )
    add("-c", metavar="CONFIGURATION", help="nnU-Net configuration of the trained model, such as 3d_fullres")
    add("-m", metavar="MODEL_FOLDER", help="folder of the trained model (with fold_X in it), instead of -d and -c")
    add(
        "-f",
        nargs="+",
        default=["0", "1", "2", "3", "4"],
        metavar="FOLD",
        help="folds whose predictions are averaged, numbers or 'all' (default: 0 1 2 3 4)",
    )
    add(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="use only these modalities (names or channel numbers), as if the other files were absent",
    )
    add(
        "-step_size",
        type=float,
        default=0.5,
        help="step of the sliding window as a share of its size, larger than 0, at most 1 (default: %(default)s)",
    )
    add("--disable_tta", action="store_true", help="no mirroring at test time: faster, less accurate")
    add("--verbose", action="store_true", help="say more")
    add("--save_probabilities", action="store_true", help="also write the class probabilities (.npz)")
    add("--continue_prediction", "--c", action="store_true", help="leave out cases that are already segmented")
    add("-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint to use (default: %(default)s)")
    add(
        "-npp",
        type=int,
        default=_from_environment("nnUNet_npp", 3),
        help="processes for preprocessing (default: %(default)s); 0, with -nps 0, uses no other processes",
    )
    add(
        "-nps",
        type=int,
        default=_from_environment("nnUNet_nps", 3),
        help="processes for export (default: %(default)s)",
    )
    add("-prev_stage_predictions", metavar="FOLDER", help="segmentations of the previous stage, for a cascade")
    add("-num_parts", type=int, default=1, help="split the cases among so many calls (default: %(default)s)")
    add("-part_id", type=int, default=0, help="which of them this call is, from 0 (default: %(default)s)")
    add("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="where to compute (default: %(default)s)")
    add("--disable_progress_bar", action="store_true", help="no progress bars")
    add("--not_on_device", action="store_true", help="keep results in CPU memory, for cases too large for the GPU's")


def run(args: argparse.Namespace) -> None:
    """Predict as `args` say.

    Raises:
        UserError: for whatever the user can mend; then nothing was computed or written.
    """
    model_folder = _model_folder(args)
    if not 0 < args.step_size <= 1:
        raise UserError(f"-step_size must be larger than 0 and at most 1; it is {args.step_size}.")
    folds = [fold_name(text) for text in args.f]
    if not os.path.isdir(args.i):
        raise UserError(f"There is no input folder {args.i}.")
    device = _device(args.device)

    from nnunetv2_unimrseg.prediction_report import report_when_predicting
    from nnunetv2_unimrseg.predictor import UniMRSegPredictor

    predictor = UniMRSegPredictor(
        tile_step_size=args.step_size,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=not args.not_on_device,
        device=device,
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
    )
    predictor.initialize_from_trained_model_folder(model_folder, folds, args.chk)
    report_when_predicting(predictor)
    predictor.predict_from_files(
        args.i,
        args.o,
        save_probabilities=args.save_probabilities,
        overwrite=not args.continue_prediction,
        num_processes_preprocessing=args.npp,
        num_processes_segmentation_export=args.nps,
        folder_with_segs_from_prev_stage=args.prev_stage_predictions,
        num_parts=args.num_parts,
        part_id=args.part_id,
        modalities=args.modalities,
    )


def _from_environment(variable: str, default: int) -> int:
    """Read a number of processes as nnU-Net does: what is no number is ignored."""
    try:
        return int(os.environ.get(variable) or default)
    except ValueError:
        return default


def _model_folder(args: argparse.Namespace) -> str:
    if args.m is not None:
        if args.d is not None or args.c is not None:
            raise UserError(
                "-m names the model's folder, so -d and -c cannot be given too. Leave one or the other out."
            )
        return args.m
    if args.d is None or args.c is None:
        raise UserError("Which model? Give -d DATASET -c CONFIGURATION, or -m MODEL_FOLDER.")
    dataset = find_dataset(args.d, "nnUNet_results")
    return str(result_folder(dataset, args.tr, args.p, args.c))


def _device(name: str) -> torch.device:
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
