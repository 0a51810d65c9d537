"""Work done in threads while the network computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.2


def in_background(producers: Iterable[Callable[[], Iterable[T]]], threads: int) -> Iterator[T]:
    """Yield what all producers yield, a few items ahead of the consumer.

    Args:
        producers: each is called in one of the threads, so its items come in order; those of different producers mix.
        threads: number of threads; 0 runs the producers one after another in this one. No more than `threads` items
            wait for the consumer.

    Raises:
        Exception: whatever a producer raises.
    """
    if threads == 0:
        for producer in producers:
            yield from producer()
        return
    remaining = iter(producers)
    items: queue.Queue = queue.Queue(maxsize=threads)
    taking, stopped = threading.Lock(), threading.Event()

    def put(entry: tuple) -> None:
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
