"""Work done in threads while the caller does something else."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

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


def map_in_threads(function: Callable[[S], T], items: Sequence[S], description: str, *, show_progress: bool) -> list[T]:
    """Return a function's result for each item, in order.

    Args:
        function: is called in as many threads as there are cores, at most `MOST_READING_THREADS`.
        items: what it is called with.
        description: of the progress bar.
        show_progress: whether to show a progress bar; there is none without items.

    Raises:
        Exception: whatever the function raises; then it is not called for the items left.
    """
    pool = ThreadPoolExecutor(min(MOST_READING_THREADS, os.cpu_count() or 1))
    try:
        results = pool.map(function, items)
        return list(tqdm(results, desc=description, total=len(items), disable=not (show_progress and items)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
