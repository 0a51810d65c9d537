"""The arguments that say which files of a folder tree are which: NAME=VALUE pairs and patterns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_unimrseg.errors import UserError


def add_pattern_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare --pattern, --names and --ignore.

    Args:
        parser: to declare them in.
        required: whether --pattern must be given.
    """
    add = parser.add_argument
    add(
        "--pattern",
        required=required,
        help="where the scans lie below the folder of -i, as in '{case}/{case}-{modality}.nii.gz'; * stands for any "
        "other text without a slash",
    )
    add(
        "--names",
        nargs="+",
        default=[],
        metavar="SPELLING=MODALITY",
        help="what the files call the modalities, as in t1c=T1ce; modalities that they call by name need none",
    )
    add("--ignore", nargs="+", default=[], metavar="PATTERN", help="files to leave out, as in '*-seg.nii.gz'")


def read_pairs(entries: Sequence[str], flag: str, example: str) -> dict[str, str]:
    """Read NAME=VALUE arguments.

    Raises:
        UserError: for an entry without a name, `=` or value, and for a name that is given twice.
    """
    pairs: dict[str, str] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not name or not value:
            raise UserError(f"{flag} has '{entry}', but it takes NAME=VALUE, as in {flag} {example}.")
        if name in pairs:
            raise UserError(f"{flag} names '{name}' twice, with {pairs[name]} and {value}. Leave one out.")
        pairs[name] = value
    return pairs
