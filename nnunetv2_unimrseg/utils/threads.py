"""Work done in threads while the caller does something else."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

MOST_READING_THREADS = 4
"""So few, because each holds a case in memory."""

_POLL_S = 0.2


def prefetch(producers: Iterable[Callable[[], Iterable[T]]], threads: int) -> Iterator[T]:
    """Yield what all producers yield; threads produce a few items ahead of the consumer.

    Args:
        producers: each is called in one thread, so that its items come in order; those of several producers mix.
        threads: number of threads, and of items that may wait for the consumer; 0 calls the producers one after another
            in the caller's thread.

    Raises:
        Exception: whatever a producer raises.
    """
    if threads == 0:
        for producer in producers:
            yield from producer()
        return
    remaining = iter(producers)
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=threads)
    taking, stopped = threading.Lock(), threading.Event()

    def put(entry: tuple[str, Any]) -> None:
        while not stopped.is_set():
            try:
                items.put(entry, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            while not stopped.is_set():
                with taking:
                    producer = next(remaining, None)
                if producer is None:
                    break
                for item in producer():
                    put(("item", item))
                    if stopped.is_set():
                        break
        except BaseException as error:
            put(("error", error))
        put(("end", None))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    try:
        running = threads
        while running:
            kind, value = items.get()
            if kind == "error":
                raise value
            if kind == "end":
                running -= 1
            else:
                yield value
    finally:
        stopped.set()


def map_in_threads(function: Callable[[S], T], items: Sequence[S], threads: int | None = None) -> Iterator[T]:
    """Yield a function's result for each item, in order; at most twice as many as threads are computed ahead.

    Args:
        function: called in other threads.
        items: what it is called with.
        threads: how many; None for one a core, at most `MOST_READING_THREADS`.

    Raises:
        Exception: whatever the function raises; then it is not called for the items left.
    """
    threads = threads or min(MOST_READING_THREADS, os.cpu_count() or 1)
    left = iter(items)
    begun: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for _ in items:
            while len(begun) < 2 * threads and (item := next(left, None)) is not None:
                begun.append(pool.submit(function, item))
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
