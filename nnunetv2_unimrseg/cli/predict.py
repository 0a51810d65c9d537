"""Segment cases that have any subset of the modalities.

Takes nnU-Net's flags. The files are those of a folder, named CASE_XXXX and the ending (-i); those of a folder tree,
named as --pattern says (-i); or those of one case, given by modality (--files). All cases are checked first, and every
problem is listed at once. modalities.json beside the segmentations lists the modalities of each case. report.html and
report.json add the Dice to expect with them, if the model was evaluated (`unimrseg evaluate`). `--modalities` uses only
those named.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.cli.model_arguments import (
    add_model_arguments,
    add_prediction_arguments,
    model_folder,
    select_device,
)
from nnunetv2_unimrseg.cli.pattern_arguments import add_pattern_arguments, read_pairs
from nnunetv2_unimrseg.data.case_files import is_file_name
from nnunetv2_unimrseg.data.cases import Files, check_input_folder
from nnunetv2_unimrseg.data.file_tree import find_files, read_layout
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import fold_name
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.output_folder import check_output_folder

if TYPE_CHECKING:
    from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg predict`: those of nnUNetv2_predict, -m, and those that name files."""
    add = parser.add_argument
    add("-i", metavar="FOLDER", help="input folder; files are named CASE_XXXX.ending, or as --pattern says")
    add_pattern_arguments(parser, required=False)
    add(
        "--files",
        nargs="+",
        metavar="MODALITY=FILE",
        help="the files of one case instead of -i, as in T1=a.nii.gz FLAIR=b.nii.gz; they may have any names",
    )
    add(
        "--case",
        metavar="NAME",
        help="name of the segmentation of --files (default: what the file names have in common, or else their folder)",
    )
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
    _check_sources(args)
    files = None if args.files is None else read_pairs(args.files, "--files", "T1=a.nii.gz FLAIR=b.nii.gz")
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
        _find_source(args, files, predictor),
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
        print(f"Each case's modalities, and the Dice to expect if it is known: {os.path.join(args.o, 'report.html')}")


def _check_sources(args: argparse.Namespace) -> None:
    """Check that the arguments name files in one way.

    Raises:
        UserError: when they name none or name them in several ways, and when there is no input folder.
    """
    if (args.i is None) == (args.files is None):
        raise UserError("Which scans? Give a folder (-i), or the files of one case (--files), and not both.")
    if args.i is None and (args.pattern or args.names or args.ignore):
        raise UserError("--pattern, --names and --ignore describe the folder of -i; --files needs none of them.")
    if args.i is not None and not args.pattern and (args.names or args.ignore):
        raise UserError("--names and --ignore need --pattern, which says where the modality stands in a file's name.")
    if args.case is not None and args.files is None:
        raise UserError("--case names the case of --files; in a folder the files' names say it.")
    if args.case is not None and not is_file_name(args.case):
        raise UserError(f"--case must be a name that a file can have; it is '{args.case}'.")
    if args.i is not None:
        check_input_folder(args.i)


def _find_source(args: argparse.Namespace, files: dict[str, str] | None, predictor: UniMRSegPredictor) -> Files:
    """Return what to predict, as `UniMRSegPredictor.predict_from_files` takes it.

    Raises:
        UserError: when the names of the files do not say what the case is called, or do not fit the pattern.
    """
    ending = str(predictor.dataset_json["file_ending"])
    if files is not None:
        return {args.case: files} if args.case else [files]
    if not args.pattern:
        return str(args.i)
    check_output_folder(args.o, [args.i])
    names = read_pairs(args.names, "--names", "t1c=T1ce")
    found = find_files(args.i, read_layout(args.pattern, names, predictor.modalities, ending, args.ignore))
    found.print_unused()
    return found.cases
