"""Write the modalities that cases lack, made from those they have by a stage-1 model.

Each missing modality is written as CASE_XXXX.ending in the case's own geometry, in normalised units or, with
--intensities, in the training set's intensities. These images are SYNTHETIC, as their headers say: they show what the
model holds for likely, not what a scan would have shown. Do not diagnose from them. Each case gets a picture,
CASE_reconstruction.png. Cases that lack nothing are scored for each missing pattern (scores.csv, summary.json).
"""

from __future__ import annotations

import argparse
import sys

from nnunetv2_unimrseg.cli.model_arguments import (
    add_model_arguments,
    add_prediction_arguments,
    inference_options,
    model_folder,
)
from nnunetv2_unimrseg.data.cases import check_input_folder
from nnunetv2_unimrseg.errors import counted, listed
from nnunetv2_unimrseg.nnunet.paths import fold_name
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

FAILED_CASES_EXIT_CODE = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg reconstruct`."""
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER", help="input folder; files are named CASE_XXXX.ending, any subset a case")
    add("-o", required=True, metavar="FOLDER", help="output folder; made if needed")
    add_model_arguments(parser, TRAINER_OF_SECTION["stage1"], "folds whose reconstructions are averaged")
    add(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="reconstruct from these only (names or channel numbers), as if the other files were absent; files of "
        "the others are the truth to score with",
    )
    add("--intensities", action="store_true", help="map to the training set's intensities; default: normalised units")
    add("--no_scores", action="store_true", help="do not score; cases that lack nothing are left out then")
    add_prediction_arguments(parser, "threads")
    add("--overwrite", action="store_true", help="replace files that are in the output folder")
    add("--continue_prediction", "--c", action="store_true", help="continue: leave out cases that have a picture")


def run(args: argparse.Namespace) -> None:
    """Reconstruct the cases of a folder.

    Raises:
        UserError: as `reconstruct`.
        SystemExit: with code 1, after all cases were tried, when one failed.
    """
    folder = model_folder(args)
    folds = [fold_name(text) for text in args.f]
    check_input_folder(args.i)
    options = inference_options(args)

    from nnunetv2_unimrseg.reconstruction.reconstruct import reconstruct

    made = reconstruct(
        args.i,
        args.o,
        folder,
        folds,
        modalities=args.modalities,
        intensities=args.intensities,
        scores=not args.no_scores,
        overwrite=args.overwrite,
        skip_done=args.continue_prediction,
        options=options,
    )
    table, failures = made.table, made.failures
    print(f"{table['file'].notna().sum()} synthetic images written to {args.o}; {table['L1'].notna().sum()} scores.")
    if failures:
        lines = listed([f"{entry['case']}, from {entry['subset']}: {entry['reason']}" for entry in failures])
        counts = counted(len(failures), "reconstruction")
        print(f"unimrseg reconstruct: {counts} failed:\n{lines}", file=sys.stderr)
        raise SystemExit(FAILED_CASES_EXIT_CODE)
