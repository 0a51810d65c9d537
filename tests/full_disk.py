"""Places that cannot take what is written: a really full disk, a really read-only file system. Mounted, as root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_unimrseg.data.whole_image import written_image_problem

PAGE = 4096
"""Bytes that the small disks give at a time."""


def _mount(*arguments: object) -> None:
    mounted = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")


def _unmount(folder: Path) -> None:
    if subprocess.run(["umount", folder], capture_output=True).returncode != 0:  # a file in it is still open
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let everything in a folder be on a really read-only file system."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,ro,bind", folder)
        yield
    finally:
        _unmount(folder)


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int = 64) -> Iterator[Path]:
    """Make a folder that is a disk of this size."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        _unmount(folder)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB, empty; `fill` fills it."""
    with small_disk(tmp_path / "full_disk") as folder:
        yield folder


def fill(disk: Path, pages_left: int = 0) -> None:
    """Fill a disk, but for some pages, with a file called `filler`."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * PAGE):
            pass
    with filler.open("r+b") as file:
        file.truncate(max(filler.stat().st_size - pages_left * PAGE, 0))


def is_full(disk: Path) -> None:
    """Check that nothing more fits: what a test says of a full disk is about a full one."""
    with pytest.raises(OSError, match="No space left"):
        (disk / "probe").write_bytes(b"x" * PAGE)
    (disk / "probe").unlink()


def files_in(folder: Path) -> dict[str, int]:
    """Return the files below a folder, by relative path, with their times of change; `filler` is left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in files if path.name != "filler"}


def check_whole(folder: Path) -> list[str]:
    """Check that every file below a folder is whole and finished; return their relative paths."""
    names = list(files_in(folder))
    assert not [path for path in folder.rglob(".*")], "unfinished files or locks are left"
    for name in names:
        assert written_image_problem(folder / name) is None, name
    return names
