"""Predict and score every subset of the modalities, and report what each missing one costs.

Without -i, each fold's model predicts its validation cases. Files are really left out. Any nnU-Net model can be
evaluated: one that was not made for missing modalities (-tr nnUNetTrainer) sees zeros in their place. Running the
same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.cli.model_arguments import (
    add_model_arguments,
    add_prediction_arguments,
    inference_options,
    model_folder,
)
from nnunetv2_unimrseg.errors import counted, listed
from nnunetv2_unimrseg.evaluation.conventions import BRATS, EMPTY_CONVENTIONS
from nnunetv2_unimrseg.nnunet.paths import fold_name
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

if TYPE_CHECKING:
    from nnunetv2_unimrseg.evaluation.evaluation import Evaluation

FAILED_CASES_EXIT_CODE = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg evaluate`."""
    folds = "folds whose validation cases are evaluated, or with -i the folds whose predictions are averaged"
    add_model_arguments(parser, TRAINER_OF_SECTION["stage3"], folds)
    add = parser.add_argument
    add("-i", metavar="IMAGES", help="evaluate the cases of this folder (with -l) instead of validation cases")
    add("-l", metavar="LABELS", help="folder with the reference CASE.ending of each case of -i")
    add("-o", metavar="FOLDER", help="where to write (default: evaluation_folds_... in the model's folder)")
    add(
        "--subsets",
        nargs="+",
        default=["all"],
        metavar="SUBSET",
        help='all, single, leave-one-out, complete, or by name as in "T1+FLAIR" (default: all)',
    )
    add(
        "--empty",
        default=BRATS,
        choices=EMPTY_CONVENTIONS,
        help="convention for labels that the reference or the prediction lacks (default: %(default)s)",
    )
    add_prediction_arguments(parser, "threads")
    add("--overwrite", action="store_true", help="replace an evaluation that lies in the folder already")
    add("--no_report", action="store_true", help="write subsets.csv and summary.json only")
    add("--no_store", action="store_true", help="do not store the result in the checkpoints, for prediction reports")
    add("--continue_prediction", "--c", action="store_true", help="no effect: an evaluation is always continued")


def run(args: argparse.Namespace) -> None:
    """Evaluate as `args` say.

    Raises:
        UserError: for every mistake that the user can mend; then nothing was computed.
        SystemExit: with code 1 when a case failed, after all others were done.
    """
    folder = model_folder(args)
    folds = [fold_name(text) for text in args.f]
    options = inference_options(args)

    from nnunetv2_unimrseg.evaluation.evaluate import evaluate

    evaluation = evaluate(
        folder,
        folds,
        images=args.i,
        labels=args.l,
        output=args.o,
        subsets=args.subsets,
        empty=args.empty,
        overwrite=args.overwrite,
        store=not args.no_store,
        options=options,
    )
    if evaluation.unfinished:
        print(
            f"This part is done. {counted(evaluation.unfinished, 'pair')} of case and subset are left to other parts; "
            "the last one writes the report."
        )
    else:
        _report(evaluation, write_page=not args.no_report)
    if evaluation.failures:
        failures = [f"{entry['case']}, {entry['subset']}: {entry['reason']}" for entry in evaluation.failures]
        print(
            f"unimrseg evaluate: could not be predicted and scored ({len(failures)}):\n{listed(failures)}",
            file=sys.stderr,
        )
        raise SystemExit(FAILED_CASES_EXIT_CODE)


def _report(evaluation: Evaluation, *, write_page: bool) -> None:
    """Write the report, if it is wanted, and print the table of subsets."""
    from nnunetv2_unimrseg.reports.tables import as_text, subset_table

    if write_page and evaluation.folder is not None:
        from nnunetv2_unimrseg.reports.evaluation import write_report

        write_report(evaluation, evaluation.folder)
    table = subset_table(evaluation)
    print(f"\n{table.caption}\n\n{as_text(table)}\n\nWritten to {evaluation.folder}")
