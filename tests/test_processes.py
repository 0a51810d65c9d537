"""Other processes: results in order, errors as they are, killed workers, and Ctrl-C without tracebacks or leftovers."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import reconstructors
import tiny
import trained
from conftest import CONFIGURATION
from interrupted import command_with_a_slow_part, interrupted
from preloaded_python import REAL_BIN
from worker_functions import (
    fail,
    ignores_interrupts,
    kill_itself,
    process_number,
    refuse,
    squared,
    uses_a_pool,
)

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.utils import processes
from nnunetv2_unimrseg.utils.processes import Workers, children_ignore_interrupts, interruptible, run_child

ADVICE = "Use fewer of them."


COUNTS = [0, pytest.param(1, marks=pytest.mark.integration), pytest.param(2, marks=pytest.mark.integration)]


@pytest.fixture(autouse=True)
def _nothing_is_left_running(fresh_processes):
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("count", COUNTS)
def test_results_come_in_order_and_nothing_is_left_running(count):
    with Workers(count, ADVICE) as workers:
        futures = [workers.submit(squared, number) for number in range(6)]
        assert [workers.result(future) for future in futures] == [0, 1, 4, 9, 16, 25]
        numbers = {workers.result(workers.submit(process_number, None)) for _ in range(4)}
    assert (numbers == {os.getpid()}) == (count == 0) and len(numbers) <= max(count, 1)
    for number in numbers - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("function", "kind"), [(refuse, UserError), (fail, ZeroDivisionError)])
def test_what_a_function_raises_arrives_as_it_is(count, function, kind):
    with pytest.raises(kind, match=r"^said in the function$"), Workers(count, ADVICE) as workers:
        workers.result(workers.submit(function, "said in the function"))


@pytest.mark.integration
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_worker_is_one_error_and_nothing_hangs(count):
    since = time.monotonic()
    with pytest.raises(UserError) as caught, Workers(count, ADVICE) as workers:
        futures = [workers.submit(kill_itself, None), *(workers.submit(squared, number) for number in range(3))]
        for future in futures:
            workers.result(future)
    assert str(caught.value) == (
        f"A worker process was killed, most likely because the memory of this machine was full. {ADVICE}"
    )
    assert time.monotonic() - since < 30


@pytest.mark.integration
def test_work_that_is_given_after_a_worker_was_killed_is_the_same_error():
    with pytest.raises(UserError, match="A worker process was killed"), Workers(1, ADVICE) as workers:
        with pytest.raises(UserError, match="A worker process was killed"):
            workers.result(workers.submit(kill_itself, None))
        workers.result(workers.submit(squared, 1))


@pytest.mark.integration
def test_an_error_ends_the_processes_without_doing_what_waits():
    since = time.monotonic()
    with pytest.raises(UserError, match="enough"), Workers(1, ADVICE) as workers:
        for _ in range(20):
            workers.submit(time.sleep, 2)
        raise UserError("enough")
    assert time.monotonic() - since < 20


@pytest.mark.integration
def test_workers_do_not_see_interrupts_and_this_process_does():
    with Workers(1, ADVICE) as workers:
        assert workers.result(workers.submit(ignores_interrupts))
        assert not ignores_interrupts()
    with children_ignore_interrupts():
        assert ignores_interrupts()
    assert not ignores_interrupts()


@pytest.mark.integration
def test_neither_do_the_processes_of_the_first_pool_of_an_interruptible_function():
    """Their start makes multiprocessing start its resource tracker, which unblocks the signal."""
    code = (
        "from worker_functions import first_pool_ignores_interrupts as function\n"
        "from nnunetv2_unimrseg.utils.processes import interruptible\n"
        "if __name__ == '__main__': print(interruptible(function))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (result.stdout, result.stderr) == ("True\n", "")


def interrupt_soon(seconds: float = 0.5) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.mark.integration
@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_ends_the_workers_at_once(count):
    with pytest.raises(KeyboardInterrupt), Workers(count, ADVICE) as workers:
        assert workers.result(workers.submit(squared, 2)) == 4
        futures = [workers.submit(time.sleep, 60) for _ in range(4)]
        interrupt_soon()
        since = time.monotonic()
        workers.result(futures[0])
    assert time.monotonic() - since < 10


def test_an_interrupt_that_comes_while_children_are_started_is_not_lost():
    with pytest.raises(KeyboardInterrupt), children_ignore_interrupts():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # another thread would let it through
        time.sleep(0.1)
        reached = True
    assert reached


# --- other people's functions that start processes ----------------------------------------------------------------


def test_an_interruptible_function_returns_and_raises_as_it_does_by_itself():
    assert interruptible(lambda: "result") == "result"
    with pytest.raises(UserError, match="refused"):
        interruptible(lambda: refuse("refused"))
    with pytest.raises(SystemExit):
        interruptible(lambda: exit(3))
    found = []
    thread = threading.Thread(target=lambda: found.append(interruptible(threading.get_ident)))
    thread.start()
    thread.join()
    assert found == [thread.ident]  # in other threads, which no interrupt reaches, it is called right there


@pytest.mark.integration
def test_an_interrupt_ends_what_an_interruptible_function_started():
    assert interruptible(lambda: uses_a_pool(0)) == [0, 1, 4, 9]
    interrupt_soon(3)
    since = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: uses_a_pool(60))
    assert time.monotonic() - since < 15


# --- a command as a child -----------------------------------------------------------------------------------------


def test_the_exit_code_of_a_child_is_told():
    assert run_child(["sh", "-c", "exit $CODE"], {**os.environ, "CODE": "7"}) == 7
    assert run_child(["sh", "-c", "kill -9 $$"], os.environ) == -9


def test_an_interrupt_waits_for_the_child_and_kills_one_that_does_not_end(tmp_path, monkeypatch):
    note = tmp_path / "note"
    interrupt_soon(0.3)
    with pytest.raises(KeyboardInterrupt):
        run_child(["sh", "-c", f"sleep 1; echo ended > {note}"], os.environ)
    assert note.read_text() == "ended\n"
    monkeypatch.setattr(processes, "_MOST_S_TO_END", 0.5)
    interrupt_soon(0.3)
    since = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_child(["sleep", "60"], os.environ)
    assert time.monotonic() - since < 10


# --- Ctrl-C -------------------------------------------------------------------------------------------------------

QUICK = ("-f", 0, "-device", "cpu", "--disable_progress_bar", "--disable_tta")


def check_quiet(ended) -> None:
    """Check that a command ended soon and quietly, with all its processes."""
    assert ended.code == 130, ended.error
    assert "Traceback" not in ended.error and "Exception" not in ended.error and "leaked" not in ended.error, (
        ended.error
    )
    assert ended.error.count("unimrseg: interrupted\n") == 1
    assert ended.left == [] and ended.seconds < 15


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if "unfinished" in path.name or path.suffix == ".lock"]


@pytest.mark.integration
@pytest.mark.parametrize(("slow", "processes"), [("network", 1), ("reading", 1), ("writing", 1), ("writing", 0)])
def test_ctrl_c_ends_predict(tmp_path, slow, processes):
    model = trained.write_model(tmp_path / "results")
    for name in "abc":
        tiny.write_case(tmp_path / "in", name, tiny.image(1), (0, 2))
    words = command_with_a_slow_part(
        tmp_path, "predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, *QUICK, "-npp", processes,
        "-nps", processes, "--save_probabilities",
    )  # fmt: skip
    check_quiet(interrupted(words, tmp_path, SLOW=slow))
    assert leftovers(tmp_path) == [] and not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.integration
@pytest.mark.parametrize("slow", ["network", "writing"])
def test_ctrl_c_ends_evaluate(tmp_path, slow):
    """What is being written or scored is finished, as threads cannot be ended; what waits for that is not begun."""
    model = trained.write_model(tmp_path / "results")
    trained.write_cases(tmp_path / "in", tmp_path / "labels", ["a", "b"])
    words = command_with_a_slow_part(
        tmp_path, "evaluate", "-i", tmp_path / "in", "-l", tmp_path / "labels", "-o", tmp_path / "out", "-m", model,
        *QUICK, "-npp", 2, "-nps", 1,
    )  # fmt: skip
    check_quiet(interrupted(words, tmp_path, wait_s=3, SLOW=slow, SLOW_S="8" if slow == "writing" else "300"))
    assert leftovers(tmp_path) == [] and not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.integration
def test_ctrl_c_ends_reconstruct(tmp_path):
    model = reconstructors.write_model(tmp_path / "results")
    tiny.write_case(tmp_path / "in", "a", tiny.image(1), (0, 2))
    words = command_with_a_slow_part(
        tmp_path,
        "reconstruct",
        "-i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "-m",
        model,
        *QUICK,
        "-npp",
        2,
        "-nps",
        2,
    )
    check_quiet(interrupted(words, tmp_path, SLOW="network"))
    assert leftovers(tmp_path) == [] and not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.integration
@pytest.mark.parametrize("slow", ["fingerprint", "preprocessing"])
def test_ctrl_c_ends_plan(tmp_path, slow):
    from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

    places = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    write_phantom_dataset(tmp_path / "raw" / "Dataset901_UniMRSegPhantom", 3, 0, shape=(24, 24, 24))
    (tmp_path / "preprocessed").mkdir()
    words = command_with_a_slow_part(
        tmp_path, "plan", "-d", 901, "-c", CONFIGURATION, "-np", 2, "-gpu_memory_target", 1, "--base-features", 8
    )
    check_quiet(interrupted(words, tmp_path, SLOW=slow, **places))
    assert leftovers(tmp_path) == []


@pytest.mark.integration
def test_ctrl_c_ends_a_real_training_and_the_processes_that_load_its_data(workspace, tmp_path):
    words = [REAL_BIN / "unimrseg", "train", workspace.dataset, workspace.configuration, 3, "-p", workspace.plans]
    environment = {**workspace.env, "nnUNet_n_proc_DA": "2", "PYTHONUNBUFFERED": "1"}  # forks are of another group
    fold = workspace.model_folder("UniMRSegStage1Trainer") / "fold_3"
    workspace.set_values("stage1.num_epochs=1000")
    try:
        ended = interrupted([*map(str, words), "-device", "cpu"], tmp_path, when="Epoch 1", **environment)
        check_quiet(ended)
        assert fold.is_dir() and leftovers(fold) == []
    finally:
        workspace.set_values("stage1.num_epochs=1")
        shutil.rmtree(fold, ignore_errors=True)
