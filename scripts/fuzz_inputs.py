"""Give random headers and bytes to the predictor: each is predicted with the right geometry or refused in a sentence.

    python scripts/fuzz_inputs.py -n 2000 --seed 0
    python scripts/fuzz_inputs.py --seed 0 --only 417 --keep /tmp/failing

Case number n of a seed is always the same: one to four files of one patient (NIfTI above all, also .mha, .nrrd, .png),
some of them odd or bad (types, scaling, sizes, voxel sizes, matrices, byte order, offsets, truncation, flipped bytes,
damaged compression, other formats, intensities). An untrained network predicts them. What is predicted must have the
size, spacing, origin and direction of the first available file and the labels that the same array gives; what is
refused must be refused by one UserError that names the file, and nothing may be written. The cases are judged in other
processes with limits of memory and time; a case whose process dies or takes too long has failed. The exit code is 1 if
any case failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import NamedTuple

from fuzz_inputs_cases import make_case
from tqdm import tqdm

FAILED = "failed"
GIB = 2**30
MOST_MEMORY, MOST_PEAK = 8 * GIB, 2 * GIB
"""The most that a process may add to its address space, and a case to the resident memory."""
SECONDS_PER_CASE, SECONDS_TO_START = 60, 300


class Result(NamedTuple):
    """What came of a case: `verdict` is what had to come of it, `kind` what did, `detail` a message."""

    number: int
    variation: str
    verdict: str
    kind: str
    detail: str
    seconds: float


def judge(connection: Connection, numbers: Sequence[int], seed: int, root: Path) -> None:
    """Judge cases one after another, in a process of its own; send None, then their results."""
    import resource

    import torch
    from fuzz_inputs_check import judge_case

    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    limit = _memory("VmSize") + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(None)
    for number in numbers:
        case = make_case(number, seed, root / f"{number}" / "in")
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmHWM")
        outcome = judge_case(case, root / f"{number}" / "out")
        kind, detail, grown = outcome.kind, outcome.detail, _memory("VmHWM") - before
        if grown > MOST_PEAK and kind != FAILED:
            kind, detail = FAILED, f"took {grown / GIB:.1f} GB ({detail})"
        connection.send(Result(number, case.variation, case.verdict, kind, detail, outcome.seconds))


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def results(numbers: Sequence[int], seed: int, root: Path) -> Iterator[Result]:
    """Yield what comes of each case; another process goes on after one that died or took too long."""
    context = multiprocessing.get_context("spawn")
    left = list(numbers)
    while left:
        connection, theirs = context.Pipe()
        process = context.Process(target=judge, args=(theirs, left, seed, root), daemon=True)
        process.start()
        theirs.close()
        begun, reason = time.monotonic(), f"took longer than {SECONDS_PER_CASE} s"
        try:
            if connection.poll(SECONDS_TO_START):
                connection.recv()
            while left and connection.poll(SECONDS_PER_CASE):
                result = connection.recv()
                left.pop(0)
                begun = time.monotonic()
                yield result
        except EOFError:
            process.join()
            reason = f"the process died ({process.exitcode})"
        process.join(0 if left else SECONDS_PER_CASE)
        process.kill()
        process.join()
        if left:
            case = make_case(left[0], seed, root / f"{left[0]}" / "in")
            yield Result(left.pop(0), case.variation, case.verdict, FAILED, reason, time.monotonic() - begun)


def results_of_processes(numbers: Sequence[int], seed: int, root: Path, processes: int) -> Iterator[Result]:
    """Yield what comes of each case, judged by several processes, in the order in which they are done."""
    done: Queue[Result] = Queue()

    def collect(part: Sequence[int]) -> None:
        for result in results(part, seed, root):
            done.put(result)

    for start in range(processes):
        Thread(target=collect, args=(numbers[start::processes],), daemon=True).start()
    for _ in numbers:
        yield done.get()


def main() -> int:
    """Judge the cases and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=2000, help="number of cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--start", type=int, default=0, metavar="NUMBER", help="the first case (default: 0)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="judge this case alone, and print what comes of it")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files of failed cases (or --only) here")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write every outcome there, a line a case")
    args = parser.parse_args()
    numbers = [args.only] if args.only is not None else list(range(args.start, args.start + args.n))
    begun, done = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="fuzz_inputs_") as name:
        root = Path(name)
        outcomes = results_of_processes(numbers, args.seed, root, args.processes)
        for result in tqdm(outcomes, total=len(numbers), desc="Cases"):
            done.append(result)
            if result.kind == FAILED or args.only is not None:
                about = f"{result.number} ({result.variation}, must be: {result.verdict})"
                tqdm.write(f"{about} {result.kind} after {result.seconds:.1f} s: {result.detail}")
                if args.keep:
                    kept = args.keep / f"{args.seed}_{result.number}"
                    shutil.copytree(root / f"{result.number}" / "in", kept, dirs_exist_ok=True)
            shutil.rmtree(root / f"{result.number}", ignore_errors=True)
    if args.log:
        lines = [f"{one.number}\t{one.variation}\t{one.kind}\t{one.detail!r}\n" for one in sorted(done)]
        args.log.write_text("".join(lines))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(one.kind for one in done).items()))
    slowest = max(done, key=lambda one: one.seconds)
    print(f"\nseed {args.seed}, cases {numbers[0]} to {numbers[-1]}, {time.monotonic() - begun:.0f} s: {counts}")
    print(f"the slowest case: {slowest.number} ({slowest.variation}), {slowest.seconds:.1f} s")
    return int(any(one.kind == FAILED for one in done))


if __name__ == "__main__":
    sys.exit(main())
