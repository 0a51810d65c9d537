"""Other processes: workers that end quietly, and other people's functions that start some."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, TypeVar

from nnunetv2_unimrseg.errors import UserError

T = TypeVar("T")

_MOST_S_TO_END, _MOST_S_TO_DIE = 60.0, 5.0


@contextlib.contextmanager
def children_ignore_interrupts() -> Iterator[None]:
    """Let processes that are started inside never see Ctrl-C, which a terminal sends to them too.

    They inherit the blocked signal. One that reaches this thread meanwhile is delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started later, it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _children_end_with_interrupts() -> Iterator[None]:
    """End the processes that were started inside when Ctrl-C ends it."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except KeyboardInterrupt:
        children = set(multiprocessing.active_children()) - before
        for child in children:
            child.terminate()
        for child in children:  # what they were writing can be removed when they have ended
            child.join(_MOST_S_TO_DIE)
            if child.is_alive():
                child.kill()
        raise


def interruptible(function: Callable[[], T]) -> T:
    """Call a function that starts processes of its own; Ctrl-C ends them, and they print nothing.

    Raises:
        Exception: whatever the function raises.
        KeyboardInterrupt: when Ctrl-C was pressed meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    outcome: Future[T] = Future()

    def run() -> None:
        with children_ignore_interrupts():
            try:
                outcome.set_result(function())
            except BaseException as error:
                outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        with _children_end_with_interrupts():
            thread.start()
            return outcome.result()
    except KeyboardInterrupt:
        thread.join(_MOST_S_TO_DIE)  # a pool starts others in place of those that ended, until the function ends too
        raise


def run_child(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and return its exit code, negative for a signal.

    Ctrl-C, which a terminal sends to the command too, waits until it has ended itself and its own processes. Whatever
    else a signal's handler raises kills it.

    Raises:
        KeyboardInterrupt: when Ctrl-C was pressed.
    """
    process = subprocess.Popen(words, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_MOST_S_TO_END)
        raise
    finally:
        process.kill()  # which does nothing to one that has ended


class Workers:
    """Processes that compute beside this one; a context manager, whose end waits for the calls that have begun.

    Args:
        count: the number of processes; with 0 this process computes, at once.
        advice: what to do where one is killed, as in "Use fewer processes (-npp)."
    """

    def __init__(self, count: int, advice: str) -> None:
        self.count = count
        self._advice = advice
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) if count else None
        self._children = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        self._children.enter_context(_children_end_with_interrupts())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children.__exit__(kind, error, trace)
        if self._pool is not None:
            interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
            self._pool.shutdown(wait=not interrupted, cancel_futures=kind is not None)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let a process call a function, which must be importable; its arguments and result are pickled."""
        if self._pool is not None:
            with children_ignore_interrupts(), self._broken():
                return self._pool.submit(function, *arguments)
        done: Future[T] = Future()
        done.set_result(function(*arguments))
        return done

    def result(self, future: Future[T]) -> T:
        """Wait for a result.

        Raises:
            UserError: when a process was killed, as happens for lack of memory.
            Exception: whatever the function raised.
        """
        with self._broken():
            return future.result()

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            raise UserError(
                f"A worker process was killed, most likely because the memory of this machine was full. {self._advice}"
            ) from error


def map_in_processes(
    function: Callable[..., T], arguments: Sequence[Sequence[Any]], count: int, advice: str, description: str
) -> list[T]:
    """Return a function's result for each of several lists of arguments, in order, with a progress bar.

    Args:
        function: must be importable.
        arguments: of each call.
        count: the number of processes, at least 1.
        advice: see `Workers`.
        description: of the progress bar.

    Raises:
        UserError: when a process was killed, as happens for lack of memory.
        Exception: whatever the function raises; then it is not called for what is left.
    """
    from tqdm import tqdm

    with Workers(min(count, max(len(arguments), 1)), advice) as workers:
        futures = [workers.submit(function, *one) for one in arguments]
        return [workers.result(future) for future in tqdm(futures, desc=description)]
