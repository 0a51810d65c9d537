"""Files that are either whole or not there: written beside their place, read back, then renamed."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import glob
import json
import os
import pickletools
import platform
import shutil
import stat
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.errors import UserError, in_one_line, reason_in_words

_UNFINISHED, _FOLDER_SUFFIX = ".unfinished", "files"


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str],
    find_problem: Callable[[Path], str | None] | None = None,
    *,
    failures: tuple[type[Exception], ...] = (),
) -> Iterator[Path]:
    """Yield the path to write a file to; once it is written and found whole, it takes its place in one step.

    Other processes see the old file or the new one. Where anything fails, the unfinished file is removed and the old
    one is as it was. Leftovers of processes that were killed while they wrote the same file are removed.

    Args:
        path: the file's place; a link to a file stays a link.
        find_problem: reads the file back and says what is wrong with it, or None; by default `file_problem`.
        failures: what the library that writes raises where it cannot, besides OSError.

    Raises:
        UserError: when the file cannot be written, or is not whole afterwards: a full disk, a quota, no permission.
    """
    caught: tuple[type[Exception], ...] = (OSError, *failures)
    place = _place(Path(path))
    temporary = place.with_name(f"{_prefix()}{os.getpid()}-{threading.get_ident()}-{place.name}")
    try:
        remove_leftovers(place.parent, glob.escape(place.name))
        yield temporary
        _check_written(temporary, place, find_problem)
        if place.exists():
            shutil.copymode(place, temporary)
        os.replace(temporary, place)
    except UserError:
        raise
    except caught as error:
        raise not_written(place, reason_in_words(error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _move(file: Path, place: Path) -> None:
    """Move a whole file to its place, which lies on another disk where a link leads there."""
    if place.exists():
        shutil.copymode(place, file)
    try:
        os.replace(file, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise

        copy_file(file, place)


def copy_file(file: Path, place: Path) -> None:
    """Copy the content of a file; see `whole_file`."""

    def difference(copy: Path) -> str | None:
        return None if filecmp.cmp(file, copy, shallow=False) else "it reads back otherwise"

    with whole_file(place, difference) as copy:
        shutil.copyfile(file, copy)


def _place(path: Path) -> Path:
    problem = place_problem(path)
    if problem:
        raise UserError(f"Cannot write {path}: {problem} Remove it, or choose another place.")
    return Path(os.path.realpath(path))


def place_problem(path: Path) -> str | None:
    """Say why no file can take this place, or None: it is, or links to, a folder, a device or nowhere."""
    place = Path(os.path.realpath(path))  # Path.resolve raises for links in a circle
    if place.is_symlink():
        return "it is a link that leads back to itself."
    if path.is_symlink() and not place.parent.is_dir():
        return f"it is a link to {place}, and there is no folder {place.parent}."
    try:
        mode = place.stat().st_mode  # asked once, for another process may just be writing the file
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return None
    kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    return f"it leads to {place}, which is {kind}." if path.is_symlink() else f"it is {kind}."


def _prefix() -> str:
    return f"{_UNFINISHED}-{platform.node()}-"


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the unfinished files that dead processes of this machine left in a folder; `name` narrows them down."""
    prefix = _prefix()
    for leftover in folder.glob(f"{glob.escape(prefix)}*-{name}"):
        process = leftover.name.removeprefix(prefix).partition("-")[0]
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # on Windows, signal 0 would not ask but interrupt
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_written(path: Path, place: Path, find_problem: Callable[[Path], str | None] | None) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())  # only once the disk has the file, a full disk, a quota or a lost network share shows
    if problem := (find_problem or file_problem)(path):
        raise not_written(place, f"what was written is not whole ({problem}; is the disk or the quota full?)")


def not_written(place: Path, reason: str) -> UserError:
    """Return the error for a file (or folder) that cannot be written, with the room that there is."""
    free, folder = "", place if place.is_dir() else place.parent
    with contextlib.suppress(OSError):
        free = f" {folder} has {shutil.disk_usage(folder).free / 2**20:.1f} MB free."
    return UserError(f"Cannot write {place}: {reason}. What was there before is unchanged.{free}")


def problem_or_failure(find_problem: Callable[[], str | None]) -> str | None:
    """Return what a check finds, or the message of what it raises: libraries raise anything for a damaged file."""
    try:
        return find_problem()
    except MemoryError:
        raise
    except Exception as error:
        return in_one_line(error)


def file_problem(path: Path) -> str | None:
    """Say in words why a file is not whole, or None: text, JSON, PNG, pickles, zip archives such as `.npz`, `.pth`."""

    def find_problem() -> str | None:
        if not path.is_file():
            return "there is no such file"
        if path.stat().st_size == 0:
            return "it is empty"
        read = _READ_BACK.get(path.suffix.lower())
        return None if read is None else read(path)

    return problem_or_failure(find_problem)


def _read_text(path: Path) -> None:
    path.read_text(encoding="utf-8")


def _read_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _read_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # reads everything, against its checksums
    return None if damaged is None else f"its entry {damaged} is damaged"


def _read_picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        picture.verify()  # that nothing is lacking at its end
    with Image.open(path) as picture:
        picture.load()


def _read_pickle(path: Path) -> None:
    with path.open("rb") as file:  # to its last operation, without carrying out any
        for _ in pickletools.genops(file):
            pass


_READ_BACK: dict[str, Callable[[Path], str | None]] = {
    **dict.fromkeys((".csv", ".html", ".md", ".tex", ".txt"), _read_text),
    **dict.fromkeys((".npz", ".pth", ".zip"), _read_zip),
    ".json": _read_json,
    ".pkl": _read_pickle,
    ".png": _read_picture,
}


def has_zip_directory(path: Path) -> bool:
    """Whether an archive (`.npz`, `.pth`) has its end, which is written last; reads no more than that."""
    try:
        return path.is_file() and zipfile.is_zipfile(path)
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: when the file is absent, is no JSON, or holds something else than an object; names the file.
    """
    if problem := place_problem(path):  # a device could be read without end
        raise UserError(f"{path} cannot be read: {problem} Remove it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. Mend or remove it.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(content).__name__}.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as nnU-Net formats it; see `whole_file`."""
    write_text(path, json.dumps(content, indent=4))


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8); see `whole_file`."""
    content = text.encode("utf-8")

    def difference(written: Path) -> str | None:
        return None if written.read_bytes() == content else "it reads back otherwise"

    with whole_file(path, difference) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def whole_files(
    folder: str | os.PathLike[str],
    find_problem: Callable[[Path], str | None] | None = None,
    *,
    failures: tuple[type[Exception], ...] = (),
) -> Iterator[Path]:
    """Yield an empty folder to write files to; once all are written and whole, they move to `folder`.

    Where anything fails, nothing in `folder` has changed.

    Args:
        folder: the files' place; it is made where it is absent.
        find_problem: reads a file back and says what is wrong with it, or None; by default `file_problem`.
        failures: what the library that writes raises where it cannot, besides OSError.

    Raises:
        UserError: when a file cannot be written, or is not whole afterwards.
    """
    caught: tuple[type[Exception], ...] = (OSError, *failures)
    folder = Path(folder)
    made = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, _FOLDER_SUFFIX)
        prefix = f"{_prefix()}{os.getpid()}-{threading.get_ident()}-"
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=f"-{_FOLDER_SUFFIX}", dir=folder) as temporary:
            yield Path(temporary)
            written = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
            places = [_place(folder / file.relative_to(temporary)) for file in written]
            for file, place in zip(written, places, strict=True):
                _check_written(file, place, find_problem)
            for below in sorted({file.relative_to(temporary).parent for file in written}):
                made = [*_missing(folder / below), *made]
                (folder / below).mkdir(parents=True, exist_ok=True)
            for file, place in zip(written, places, strict=True):
                _move(file, place)
    except UserError:
        raise
    except caught as error:
        raise not_written(folder, reason_in_words(error)) from error
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # it stays where it holds something
                one.rmdir()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; once everything is written to it, it takes the place of `folder`, which must not exist.

    Where anything fails, nothing is left of it. What a process that was killed left is removed by the next one.

    Raises:
        UserError: when it cannot be made, written to or moved.
    """
    temporary = folder.with_name(f"{_prefix()}{os.getpid()}-{threading.get_ident()}-{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent, glob.escape(folder.name))
        temporary.mkdir()
        yield temporary
        if os.path.lexists(folder):  # renaming would replace an empty folder
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        os.replace(temporary, folder)
    except OSError as error:
        raise not_written(folder, reason_in_words(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _missing(folder: Path) -> list[Path]:
    """Return the folders that must be made for a folder to exist, the deepest first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]
