"""Make a raw nnU-Net dataset of files that have names of their own, without renaming or copying them.

The patterns say where scans and labels lie. Cases that lack a label or some of the scans are imported as they are, and
a table says how many have what. All problems are listed at once, and nothing is overwritten. The dataset holds symbolic
links, which work across disks and need no right to write to the source; they break when the source is moved. `--copy`
makes copies.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from nnunetv2_unimrseg.cli.pattern_arguments import add_pattern_arguments, read_pairs
from nnunetv2_unimrseg.errors import UserError, counted, listed
from nnunetv2_unimrseg.nnunet.paths import RAW, nnunet_folder, refuse_known_dataset

MOST_LISTED_FILES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg import`."""
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER", help="folder that holds the files, in any folders below it")
    add("-d", required=True, type=int, metavar="NUMBER", help="number of the new dataset, 1 to 999")
    add("--name", required=True, help="name of the new dataset, as in BrainTumour")
    add_pattern_arguments(parser, required=True)
    add(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="the dataset's modalities in channel order (default: those of --names, in their order)",
    )
    add(
        "--label-pattern",
        required=True,
        metavar="PATTERN",
        help="where the labels lie, as in '{case}/{case}-seg.nii.gz'",
    )
    add(
        "--labels",
        nargs="+",
        required=True,
        metavar="NAME=VALUE",
        help="the values of the labels, as in background=0 tumour=1; several values, as in whole=1,2,3, make a region",
    )
    add(
        "--patient",
        metavar="REGEX",
        help="where several cases may be of one patient: a regular expression whose first group is the patient in a "
        "case's name, as in '(BraTS-GLI-[0-9]+)'",
    )
    add("--copy", action="store_true", help="copy the files instead of linking to them")
    add("--dry-run", action="store_true", help="only print what would be made")


def run(args: argparse.Namespace) -> None:
    """Make the dataset, or print what would be made.

    Raises:
        UserError: for a bad argument, a dataset that exists, or files that cannot be used, before anything is written;
            and when something cannot be written, after which nothing of it is left.
    """
    if not 1 <= args.d <= 999:
        raise UserError(f"The number of a dataset (-d) must be from 1 to 999; it is {args.d}.")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", args.name, re.ASCII):
        raise UserError(f"The dataset's name must consist of letters, digits, '-' and '_'; it is '{args.name}'.")
    raw, name = nnunet_folder(RAW), f"Dataset{args.d:03d}_{args.name}"
    refuse_known_dataset(args.d, args.name)

    from nnunetv2_unimrseg.data.dataset_import import plan_import

    labels = read_pairs(args.labels, "--labels", "background=0 tumour=1")
    planned = plan_import(
        args.i,
        raw / name,
        args.pattern,
        args.label_pattern,
        {label: _read_label_values(text) for label, text in labels.items()},
        names=read_pairs(args.names, "--names", "t1c=T1ce"),
        modalities=args.modalities,
        ignored=args.ignore,
        patient=args.patient,
    )
    planned.found.print_unused()
    if args.dry_run:
        links = [f"{place}: {source}" for place, source in planned.files.items()]
        print(f"{planned.folder} would get {counted(len(links), 'file')}:\n{listed(links, MOST_LISTED_FILES)}")
        print(f"dataset.json: {json.dumps(planned.dataset_json, indent=4)}")
    else:
        planned.write(copy=args.copy)
        print(f"Made {planned.folder}. Plan it with `unimrseg plan -d {args.d}`.")
    print(planned.describe())


def _read_label_values(text: str) -> Any:
    """Return the values of a label: a number, or a list of them for a region; text stays for the check to name it."""
    values = [int(value) if re.fullmatch(r"-?\d+", value, re.ASCII) else value for value in text.split(",")]
    return values if len(values) > 1 else values[0]
