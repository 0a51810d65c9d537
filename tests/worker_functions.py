"""Functions for other processes, in a module that is imported quickly: each process imports it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

from nnunetv2_unimrseg.errors import UserError


def squared(number: int) -> int:
    time.sleep(0.05 * (number % 3))
    return number**2


def refuse(text: str) -> None:
    raise UserError(text)


def fail(text: str) -> None:
    raise ZeroDivisionError(text)


def kill_itself(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def process_number(_: object) -> int:
    return os.getpid()


def ignores_interrupts() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def uses_a_pool(seconds: float) -> list[int]:
    """Do as nnU-Net does: wait for a pool's results, and raise where one of its processes is gone."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        workers = list(pool._pool)
        pool.map(squared, range(2))
        waiting = pool.map_async(time.sleep, [seconds] * 2)
        while not waiting.ready():
            if not all(worker.is_alive() for worker in workers):
                raise RuntimeError("Some background worker is gone")
            time.sleep(0.05)
        return pool.map(squared, range(4))


def first_pool_ignores_interrupts() -> bool:
    """Say whether the process of a pool, started before anything else of multiprocessing was, ignores Ctrl-C."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(ignores_interrupts)
