"""Segment cases that have any subset of the modalities.

Takes nnU-Net's flags. All cases are checked first, and every problem is listed at once. modalities.json beside the
segmentations lists the modalities of each case. report.html and report.json add the Dice to expect with them, if the
model was evaluated (`unimrseg evaluate`). `--modalities` uses only those named.
"""

from __future__ import annotations

import argparse
import os

from nnunetv2_unimrseg.cli.model_arguments import (
    add_model_arguments,
    add_prediction_arguments,
    model_folder,
    select_device,
)
from nnunetv2_unimrseg.data.cases import check_input_folder
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import fold_name
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg predict`: those of nnUNetv2_predict, -m and --modalities."""
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER", help="input folder; files are named CASE_XXXX.ending, any subset a case")
    add("-o", required=True, metavar="FOLDER", help="output folder; made if needed")
    add_model_arguments(parser, TRAINER_OF_SECTION["stage3"], "folds whose predictions are averaged")
    add(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="use only these modalities (names or channel numbers), as if the other files were absent",
    )
    add("--no_report", action="store_true", help="write no report.html and report.json, read no stored evaluations")
    add("--verbose", action="store_true", help="print nnU-Net's messages about each case too")
    add("--save_probabilities", action="store_true", help="also write the class probabilities (.npz)")
    add("--continue_prediction", "--c", action="store_true", help="leave out cases that are already segmented")
    add("-prev_stage_predictions", metavar="FOLDER", help="segmentations of the previous stage, for a cascade")
    add_prediction_arguments(parser, "processes")


def run(args: argparse.Namespace) -> None:
    """Predict the cases of a folder.

    Raises:
        UserError: for a bad argument, model, input or output folder, before anything is computed; and when a file
            cannot be written.
    """
    folder = model_folder(args)
    if not 0 < args.step_size <= 1:
        raise UserError(f"-step_size must be larger than 0 and at most 1; it is {args.step_size}.")
    folds = [fold_name(text) for text in args.f]
    check_input_folder(args.i)
    device = select_device(args.device)

    from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
    from nnunetv2_unimrseg.reports.prediction import prediction_reporter

    predictor = UniMRSegPredictor(
        tile_step_size=args.step_size,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=not args.not_on_device,
        device=device,
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
    )
    predictor.initialize_from_trained_model_folder(folder, folds, args.chk)
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
        before_predicting=None if args.no_report else prediction_reporter(predictor),
    )
    if not args.no_report:
        print(f"The Dice to expect of each case: {os.path.join(args.o, 'report.html')}")
