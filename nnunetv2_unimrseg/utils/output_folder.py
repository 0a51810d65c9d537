"""Places to write: checked before anything is computed, without leaving anything there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from nnunetv2_unimrseg.errors import UserError

ANOTHER = "Give another output folder (-o)."


def check_output_folder(
    folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = (), advice: str = ANOTHER
) -> None:
    """Check, without making it, that a folder can take what is to be written and holds no input.

    Args:
        folder: where it lies or is to be made.
        inputs: folders and files that are read. No input folder may be the output folder, lie in it or hold it; no
            input file may lie in it or below it. Links are followed; what does not exist is no input.
        advice: what to do instead.

    Raises:
        UserError: when input and output overlap; when the folder, or what it is to be made in, is no folder; when
            nothing can be written there (tried out with a temporary file).
    """
    folder = Path(folder)
    output = folder.resolve()
    for read in filter(os.path.lexists, map(Path, inputs)):
        relation = _overlap(output, read)
        if relation:
            leads = "" if output == folder.absolute() else f" (it leads to {output})"
            raise UserError(
                f"The output folder {folder}{leads} {relation} {read}. The next time, what is written there would be "
                f"taken for input. {advice}"
            )
    _refuse_unwritable(folder, advice)


def make_output_folder(folder: Path) -> None:
    """Make a folder that has passed `check_output_folder`, and those that hold it.

    Raises:
        UserError: when it cannot be made all the same.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(folder, "made", error, folder.parent, ANOTHER) from error


def check_output_files(files: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Check, without making anything, that files can be written and are no input.

    Args:
        files: to be written, with their endings.
        inputs: folders and files that are read. No output file may be an input file or lie in an input folder. Links
            are followed.

    Raises:
        UserError: when input and output overlap, and when nothing can be written to the folder of a file.
    """
    advice = "Give another output file."
    resolved = {read.resolve(): read for read in map(Path, inputs)}
    places = [Path(file) for file in files]
    for file in places:
        for target in (file.resolve(), file.parent.resolve() / file.name):
            read = next((resolved[one] for one in (target, *target.parents) if one in resolved), None)
            if read is not None:
                if read.is_dir():
                    relation = f"lies in the input folder {read}. The next time, it would be taken for input"
                else:
                    relation = f"is the input file {read}, which it would replace"
                raise UserError(f"The output file {file} {relation}. {advice}")
    for folder in dict.fromkeys(file.parent for file in places):
        _refuse_unwritable(folder, advice)


def _overlap(output: Path, read: Path) -> str | None:
    """Say how an input is related to an output folder, whose path is resolved; None where they lie apart."""
    if not read.is_dir():
        parent = read.parent.resolve()
        holds = output in (parent, *parent.parents, read.resolve().parent)
        return "holds the input file" if holds else None
    place = read.resolve()
    if output == place:
        return "is the input folder"
    if place in output.parents:
        return "lies in the input folder"
    return "holds the input folder" if output in place.parents else None


def _refuse_unwritable(folder: Path, advice: str) -> None:
    # lexists and not exists: a link that leads nowhere is in the way
    existing = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path.cwd())
    there = existing == folder
    if not existing.is_dir():
        if existing.is_symlink():
            kind = f"is a link to {os.path.realpath(existing)}, which is no folder that can be reached"
        else:
            kind = "is a file, no folder"
        what = f"{folder} {kind}" if there else f"The output folder {folder} cannot be made: {existing} {kind}"
        raise UserError(f"{what}. {advice}")
    try:
        if there:
            os.scandir(existing).close()
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _refusal(folder, "written to" if there else "made", error, existing, advice) from error


def _refusal(folder: Path, doing: str, error: OSError, place: Path, advice: str) -> UserError:
    return UserError(f"The output folder {folder} cannot be {doing}: {_in_words(error, place)}. {advice}")


def _in_words(error: OSError, folder: Path) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission in {folder}"
    if error.errno == errno.EROFS:
        return f"{folder} lies on a read-only file system"
    return f"{error.strerror or type(error).__name__} in {folder}"
