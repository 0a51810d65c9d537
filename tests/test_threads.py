"""Items made in threads arrive, whatever the number of threads, and errors too."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from nnunetv2_unimrseg.utils.threads import prefetch


@pytest.mark.parametrize("threads", [0, 1, 3, 9])
def test_every_item_arrives_and_each_producers_in_order(threads):
    producers = [partial(iter, [(number, item) for item in range(5)]) for number in range(6)]
    items = list(prefetch(producers, threads))
    assert sorted(items) == [(number, item) for number in range(6) for item in range(5)]
    for number in range(6):
        assert [item for one, item in items if one == number] == list(range(5))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_reaches_the_consumer(threads):
    def failing():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(prefetch([failing], threads))


def test_no_more_items_wait_than_there_are_threads():
    made = []
    paused = threading.Event()

    def counting():
        for number in range(10):
            made.append(number)
            if number == 3:
                paused.set()
            yield number

    items = prefetch([counting], 2)
    next(items)
    assert paused.wait(5)
    assert len(made) <= 5
    items.close()


def test_threads_end_when_the_consumer_stops():
    before = threading.active_count()
    items = prefetch([lambda: iter(range(1000))] * 3, 3)
    next(items)
    items.close()
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            thread.join(2)
    assert threading.active_count() <= before
