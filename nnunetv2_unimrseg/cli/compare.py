"""Compare evaluations of the same cases: paired differences by subset, with intervals and tests.

The first evaluation is the baseline; every other is compared with it. The case is the unit: differences of means have
bootstrap intervals over cases, and Wilcoxon signed-rank tests corrected by Holm's method over the subsets.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg compare`."""
    add = parser.add_argument
    add("folders", nargs="+", metavar="EVALUATION", help="folders that `unimrseg evaluate` wrote, the baseline first")
    add("-o", required=True, metavar="FOLDER", help="where to write tables, plots and report.html")
    add("--names", nargs="+", metavar="NAME", help="what to call the models (default: their own names)")
    add("--confidence", type=float, default=0.95, help="confidence level of the intervals (default: %(default)s)")
    add("--resamples", type=int, default=10_000, metavar="N", help="number of bootstrap samples (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    add("--overwrite", action="store_true", help="write into FOLDER though it holds something else")


def run(args: argparse.Namespace) -> None:
    """Compare, write the report, and print the table of the mean over the labels.

    Raises:
        UserError: for every mistake that the user can mend; then nothing was written.
    """
    from nnunetv2_unimrseg.comparison.compare import compare
    from nnunetv2_unimrseg.reports.comparison import check_output, write_comparison
    from nnunetv2_unimrseg.reports.comparison_tables import comparison_table
    from nnunetv2_unimrseg.reports.tables import as_text

    folder = Path(args.o)
    check_output(folder, overwrite=args.overwrite)
    comparison = compare(args.folders, args.names, confidence=args.confidence, resamples=args.resamples, seed=args.seed)
    write_comparison(comparison, folder)
    table = comparison_table(comparison, comparison.headline)
    print(f"{table.caption}\n\n{as_text(table)}\n")
    for notice in comparison.notices:
        print(f"Note: {notice}", file=sys.stderr)
    print(f"Wrote {folder / 'report.html'} and the tables and plots beside it.")
