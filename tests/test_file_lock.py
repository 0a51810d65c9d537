"""The lock between processes that rewrite one file."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.utils import file_lock
from nnunetv2_unimrseg.utils.file_lock import locked


def die_inside(path: Path) -> None:
    with locked(path):
        os._exit(0)


def add_one(path: Path) -> None:
    with locked(path):
        number = int(path.read_text())
        time.sleep(0.05)
        path.write_text(str(number + 1))


def test_threads_take_turns_and_leave_nothing(tmp_path):
    inside, most = [], []

    def enter(number: int) -> None:
        with locked(tmp_path / "report.json"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, range(6)))
    assert most == [1] * 6 and not list(tmp_path.iterdir())


def test_processes_take_turns_and_leave_nothing(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(add_one, [path] * 6)
    assert path.read_text() == "6" and list(tmp_path.iterdir()) == [path]


def test_the_lock_of_a_process_that_was_killed_is_taken_at_once(tmp_path):
    path = tmp_path / "report.json"
    process = multiprocessing.get_context("spawn").Process(target=die_inside, args=[path])
    process.start()
    process.join()
    assert (tmp_path / ".report.json.lock").exists()
    begin = time.monotonic()
    with locked(path):
        pass
    assert time.monotonic() - begin < 5 and not list(tmp_path.iterdir())


def test_the_lock_of_another_machine_is_taken_once_it_is_no_longer_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "_LEASE_S", 1.0)
    lock = tmp_path / ".report.json.lock"
    lock.write_text("filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=0\nduration=1.0\n")
    begin = time.monotonic()
    with locked(tmp_path / "report.json"):
        assert time.monotonic() - begin >= 1
    assert not list(tmp_path.iterdir())


def test_a_lock_in_use_is_not_taken_however_long_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "_LEASE_S", 0.5)
    monkeypatch.setattr(file_lock, "_LONGEST_WAIT_S", 1.5)
    path = tmp_path / "report.json"

    def enter() -> None:
        with locked(path):
            raise AssertionError("entered beside another")

    with locked(path), ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match=r"Remove .*\.report\.json\.lock"):
        pool.submit(enter).result()
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_one_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write .*report\.json: "), locked(tmp_path / "file" / "report.json"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission_is_one_user_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"Cannot write .*: Permission denied"), locked(tmp_path / "report.json"):
            pass
    finally:
        tmp_path.chmod(0o700)
