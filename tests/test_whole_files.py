"""Files are whole or not there: every step of writing may fail, and what was there before stays as it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import platform
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from full_disk import full_disk  # noqa: F401 (a fixture)
from PIL import Image

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.utils import files
from nnunetv2_unimrseg.utils.files import (
    file_problem,
    has_zip_directory,
    place_problem,
    read_json,
    remove_leftovers,
    whole_file,
    whole_files,
    write_json,
    write_text,
)

OLD = '{"was": "there"}'
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def written_as(contents: dict[str, str], folder: Path) -> None:
    """Write the files of a folder through `whole_files`."""
    with whole_files(folder, failures=(RuntimeError,)) as unfinished:
        for name, text in contents.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_text(text)


def through_whole_file(folder: Path) -> None:
    with whole_file(folder / "a.json", failures=(RuntimeError,)) as unfinished:
        unfinished.write_text("{}")


WAYS = {
    "whole_file": through_whole_file,
    "whole_files": lambda folder: written_as({"a.json": "{}", "deeper/b.json": "{}"}, folder),
    "write_text": lambda folder: write_text(folder / "a.json", "{}"),
    "write_json": lambda folder: write_json(folder / "a.json", {}),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text(OLD)
    return tmp_path / "out"


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def failing(error: BaseException, calls_before: int = 0, function=None):
    left = [calls_before]

    def fail(*arguments, **keywords):
        left[0] -= 1
        if left[0] >= 0:
            return function(*arguments, **keywords)
        raise error

    return fail


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("write", NO_SPACE),
        ("write", KeyboardInterrupt()),
        ("fsync", OSError(errno.EDQUOT, "Disk quota exceeded")),
        ("fsync", KeyboardInterrupt()),
        ("check", OSError(errno.EIO, "Input/output error")),
        ("check", KeyboardInterrupt()),
        ("rename", PermissionError(errno.EACCES, "Permission denied")),
        ("rename", KeyboardInterrupt()),
    ],
)
def test_whatever_fails_the_old_file_stays_and_nothing_else(folder, monkeypatch, way, step, error):
    module, function = {
        "write": (Path, "write_bytes" if way in ("write_text", "write_json") else "write_text"),
        "fsync": (os, "fsync"),
        "check": (Path, "read_bytes") if way in ("write_text", "write_json") else (files, "file_problem"),
        "rename": (os, "replace"),
    }[step]
    with monkeypatch.context() as patches:
        patches.setattr(module, function, failing(error))
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError) as caught:
            WAYS[way](folder)
    assert (folder / "a.json").read_text() == OLD and names_in(folder) == ["a.json"]
    if isinstance(error, OSError):
        place = folder if way == "whole_files" else folder / "a.json"
        start, end = f"Cannot write {place}: {error.strerror}. What was there before is unchanged. ", " MB free."
        assert str(caught.value).startswith(start) and str(caught.value).endswith(end)


@pytest.mark.parametrize("way", ["whole_file", "whole_files"])
def test_what_a_library_raises_is_one_error_where_it_is_named_and_passes_where_it_is_not(folder, monkeypatch, way):
    with monkeypatch.context() as patches:
        patches.setattr(Path, "write_text", failing(RuntimeError("ITK cannot write")))
        with pytest.raises(UserError, match="ITK cannot write"):
            WAYS[way](folder)
        patches.setattr(Path, "write_text", failing(ZeroDivisionError("a fault of ours")))
        with pytest.raises(ZeroDivisionError):
            WAYS[way](folder)
    assert (folder / "a.json").read_text() == OLD and names_in(folder) == ["a.json"]


def test_a_user_error_raised_inside_stays_what_it_is(folder):
    for writing in (whole_file(folder / "a.json"), whole_files(folder)):
        with pytest.raises(UserError, match=r"^said by somebody else$"), writing:
            raise UserError("said by somebody else")
    assert names_in(folder) == ["a.json"]


def test_what_is_not_whole_does_not_take_its_place(folder):
    with pytest.raises(UserError, match=r"not whole \(it is empty; is the disk or the quota full\?\)\. "):  # noqa: SIM117
        with whole_file(folder / "a.json") as unfinished:
            unfinished.touch()
    with pytest.raises(UserError, match=r"a\.json: what was written is not whole \(Unterminated"):
        written_as({"0.json": "{}", "a.json": '{"cut'}, folder)
    with pytest.raises(UserError, match="No such file or directory"), whole_file(folder / "a.json"):
        pass
    assert (folder / "a.json").read_text() == OLD and names_in(folder) == ["a.json"]


def test_a_text_that_reads_back_otherwise_is_not_written(folder, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: write(path, content[:-1]))
    with pytest.raises(UserError, match="it reads back otherwise"):
        write_text(folder / "a.json", "[1, 2]")
    assert (folder / "a.json").read_text() == OLD and names_in(folder) == ["a.json"]


def test_of_several_files_none_changes_where_one_has_no_place(folder):
    (folder / "b.json").mkdir()
    with pytest.raises(UserError, match=r"b\.json: it is a folder\. Remove it, or choose another place"):
        written_as({"a.json": "{}", "b.json": "{}"}, folder)
    (folder / "c").write_text("a file")
    with pytest.raises(UserError, match="Cannot write"):
        written_as({"a.json": "{}", "c/d.json": "{}"}, folder)
    assert (folder / "a.json").read_text() == OLD and names_in(folder) == ["a.json", "b.json", "c"]


def test_a_folder_that_was_made_for_files_that_failed_is_gone(tmp_path):
    with pytest.raises(UserError):
        written_as({"a.json": "no JSON"}, tmp_path / "new")
    assert names_in(tmp_path) == []
    written_as({"a.json": "{}"}, tmp_path / "new")
    assert names_in(tmp_path) == ["new", "new/a.json"]


# --- places -------------------------------------------------------------------------------------------------------


def test_a_link_to_a_file_stays_a_link_and_the_file_is_replaced(folder, tmp_path):
    target = tmp_path / "elsewhere" / "target.json"
    target.parent.mkdir()
    for way in WAYS.values():
        target.write_text(OLD)
        (folder / "a.json").unlink()
        (folder / "a.json").symlink_to(target)
        way(folder)
        assert (folder / "a.json").is_symlink() and target.read_text() == "{}"
    assert names_in(target.parent) == ["target.json"]


def test_a_link_to_no_file_gets_one_where_the_folder_is_there_and_is_refused_where_it_is_not(folder, tmp_path):
    for way in WAYS.values():
        (folder / "a.json").unlink()
        (folder / "a.json").symlink_to(tmp_path / "new.json")
        way(folder)
        assert (folder / "a.json").is_symlink() and (tmp_path / "new.json").read_text() == "{}"
        (tmp_path / "new.json").unlink()
        shutil.rmtree(folder / "deeper", ignore_errors=True)
        for target, words in (
            ("/unmounted/share/new.json", "it is a link to /unmounted/share/new.json, and there is no folder /unm"),
            ("a.json", "it is a link that leads back to itself. Remove it, or choose another place."),
        ):
            (folder / "a.json").unlink()
            (folder / "a.json").symlink_to(target)
            with pytest.raises(UserError) as caught:
                way(folder)
            assert str(caught.value).startswith(f"Cannot write {folder}/a.json: {words}")
        assert names_in(folder) == ["a.json"] and not os.path.exists("/unmounted")
        shutil.rmtree(folder / "deeper", ignore_errors=True)


def test_a_link_to_another_file_system_is_written_through(full_disk, folder):  # noqa: F811
    target = full_disk / "target.json"
    (folder / "a.json").unlink()
    (folder / "a.json").symlink_to(target)
    for way in WAYS.values():
        target.write_text(OLD)
        way(folder)
        assert (folder / "a.json").is_symlink() and target.read_text() == "{}"
    assert names_in(full_disk) == ["target.json"]
    target.write_text(OLD)
    with pytest.raises(UserError, match=rf"Cannot write {target}: No space left .* {full_disk} has 0\.[01] MB free\.$"):
        written_as({"a.json": json.dumps("x" * 100_000)}, folder)
    with pytest.raises(UserError, match=rf"write {full_disk}: No space left .* {full_disk} has 0\.[01] MB free\.$"):
        written_as({"a.json": json.dumps("x" * 100_000)}, full_disk)
    assert target.read_text() == OLD and names_in(full_disk) == ["target.json"]


def test_folders_and_devices_are_no_places(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "full").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "pipe")
    assert place_problem(folder) == "it is a folder."
    assert place_problem(tmp_path / "link") == f"it leads to {folder.resolve()}, which is a folder."
    assert place_problem(tmp_path / "full") == "it leads to /dev/full, which is no regular file."
    assert place_problem(tmp_path / "pipe") == "it is no regular file."
    (tmp_path / "nowhere").symlink_to(tmp_path / "new.json")
    for usable in (folder / "a.json", folder / "new.json", tmp_path / "nowhere"):
        assert place_problem(usable) is None
    for name in ("link", "full", "pipe"):
        with pytest.raises(UserError, match=r"Remove it, or choose another place\.$"):
            write_text(tmp_path / name, "{}")
    assert (tmp_path / "full").is_symlink() and os.path.exists("/dev/full")


def test_what_is_no_regular_file_is_not_read(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")  # which gives zeros without end
    for path in (tmp_path / "full", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read: it .*\. Remove it\.$"):
            read_json(path)
    with pytest.raises(UserError, match="There is no file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("way", WAYS)
def test_permissions_are_those_of_the_old_file_and_of_the_umask_for_a_new_one(folder, way):
    (folder / "a.json").chmod(0o640)
    WAYS[way](folder)
    assert stat.S_IMODE((folder / "a.json").stat().st_mode) == 0o640
    for umask in (0o022, 0o007):
        (folder / "a.json").unlink()
        shutil.rmtree(folder / "deeper", ignore_errors=True)
        before = os.umask(umask)
        try:
            WAYS[way](folder)
        finally:
            os.umask(before)
        assert stat.S_IMODE((folder / "a.json").stat().st_mode) == 0o666 & ~umask
        if way == "whole_files":
            assert stat.S_IMODE((folder / "deeper").stat().st_mode) == 0o777 & ~umask


def test_two_threads_that_write_the_same_file_leave_one_of_both_whole(folder):
    texts, errors, start = ["a" * 100_000, "b" * 50_000], [], threading.Barrier(2)

    def write(text: str) -> None:
        try:
            start.wait()
            for _ in range(20):
                write_text(folder / "a.txt", text)
                written_as({"b.txt": text}, folder)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (folder / "a.txt").read_text() in texts and (folder / "b.txt").read_text() in texts
    assert names_in(folder) == ["a.json", "a.txt", "b.txt"]


# --- leftovers ----------------------------------------------------------------------------------------------------

HALF_WRITTEN = """
import sys, time
from nnunetv2_unimrseg.utils.files import whole_file, whole_files
with whole_file(sys.argv[1] + "/a.json") as file, whole_files(sys.argv[1]) as folder:
    file.write_text('{"half'), (folder / "b.json").write_text('{"half')
    print("begun", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(folder):
    child = subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "begun\n"
        unfinished = [name for name in names_in(folder) if name.startswith(".unfinished")]
        assert len(unfinished) == 3  # a file, a folder and the file in it
        remove_leftovers(folder)
        write_text(folder / "a.json", OLD)
        written_as({"b.json": "{}"}, folder)
        assert [name for name in names_in(folder) if name.startswith(".unfinished")] == unfinished
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert [name for name in names_in(folder) if name.startswith(".unfinished")] == unfinished
    write_text(folder / "a.json", OLD)
    left = [name for name in names_in(folder) if name.startswith(".unfinished")]
    assert len(left) == 2 and all("-files" in name for name in left)
    written_as({"b.json": "{}"}, folder)
    assert names_in(folder) == ["a.json", "b.json"]


def test_what_others_left_is_not_touched(folder):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = dead.stdout.strip()
    others = [f".unfinished-another_machine-{dead}-1-a.json", f".unfinished-{platform.node()}-words-a.json", ".hidden"]
    for name in (*others, f".unfinished-{platform.node()}-{dead}-1-a.json"):
        (folder / name).touch()
    write_text(folder / "b.json", "{}")
    assert len(names_in(folder)) == 6
    remove_leftovers(folder)
    assert names_in(folder) == sorted([*others, "a.json", "b.json"])


def test_names_with_special_characters_are_names(tmp_path):
    for name in ("a[1].json", "*.json", "?", "ä b.json"):
        write_text(tmp_path / name, "{}")
        written_as({f"second {name}": "{}"}, tmp_path)
    assert len(names_in(tmp_path)) == 8 and all((tmp_path / name).read_text() == "{}" for name in names_in(tmp_path))


# --- what is whole ------------------------------------------------------------------------------------------------


def make(path: Path) -> Path:
    """Write a whole file of the kind that its ending says."""
    if path.suffix == ".npz":
        np.savez_compressed(path, probabilities=np.random.default_rng(0).random((3, 20, 20)))
    elif path.suffix == ".png":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"spacing": [1.0, 2.0, 3.0], "box": np.arange(6)}))
    elif path.suffix == ".pth":
        import torch

        torch.save({"network_weights": {"a": torch.arange(3000)}}, path)
    else:
        path.write_text('{"a": [1, 2, 3]}')
    return path


@pytest.mark.parametrize("ending", [".json", ".npz", ".png", ".pth", ".pkl"])
def test_a_file_that_is_cut_off_or_empty_or_absent_is_not_whole(tmp_path, ending):
    path = make(tmp_path / f"a{ending}")
    assert file_problem(path) is None
    whole = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        assert file_problem(path), share
    path.write_bytes(whole[: -9 if ending == ".png" else -1])  # PNG ends with a chunk of 12 bytes that hold nothing
    assert file_problem(path)
    path.write_bytes(b"")
    assert file_problem(path) == "it is empty"
    path.unlink()
    assert file_problem(path) == file_problem(tmp_path) == "there is no such file"


def test_text_must_be_utf_8_and_archives_must_match_their_checksums(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"caf\xe9")
    assert "utf-8" in file_problem(tmp_path / "a.csv")
    path = make(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert file_problem(path)
    assert has_zip_directory(path)  # the end is there, which is all it looks at


def test_an_archive_has_its_directory_only_where_it_was_written_to_the_end(tmp_path):
    for ending in (".npz", ".pth"):
        path = make(tmp_path / f"a{ending}")
        assert has_zip_directory(path)
        path.write_bytes(path.read_bytes()[:-30])
        assert not has_zip_directory(path)
        path.write_bytes(b"")
        assert not has_zip_directory(path)
    assert not has_zip_directory(tmp_path / "none.pth") and not has_zip_directory(tmp_path)
