"""Give random headers and bytes to the predictor: each is predicted with the right geometry or refused in a sentence.

    python scripts/fuzz_inputs.py -n 2000 --seed 0
    python scripts/fuzz_inputs.py --seed 0 --only 417 --keep /tmp/failing

Case number n of a seed is always the same: one to four files of one patient (NIfTI above all, also .mha, .nrrd, .png),
some of them odd or bad (types, scaling, sizes, voxel sizes, matrices, byte order, offsets, truncation, flipped bytes,
damaged compression, other formats, intensities). An untrained network predicts them. What is predicted must have the
size, spacing, origin and direction of the first available file and the labels that the same array gives; what is
refused must be refused by one UserError that names the file, and nothing may be written. Worker processes have limits
of memory and time; one that dies is a failure of the case that it had. The exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from fuzz_inputs_cases import make_case
from tqdm import tqdm

FAILED, PREDICTED = "failed", "predicted"
GIB = 2**30
MOST_MEMORY, MOST_PEAK = 8 * GIB, 2 * GIB
"""Of a worker above what it has at its start: address space, and resident memory of one case."""
SECONDS_PER_CASE = 60
Result = tuple[int, str, str, str, str, float]
"""Number, variation, what had to come of it, kind of outcome, detail, seconds."""


def work(connection: Connection, seed: int, root: Path) -> None:
    """Judge the cases whose numbers come, until None comes."""
    import resource

    import torch
    from fuzz_inputs_check import outcome_of

    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    base = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (base + MOST_MEMORY, base + MOST_MEMORY))
    connection.send(None)
    while (number := connection.recv()) is not None:
        folder = root / f"{number}"
        case = make_case(number, seed, folder / "in")
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmHWM")
        outcome = outcome_of(case, folder / "out")
        kind, detail, grown = outcome.kind, outcome.detail, _status("VmHWM") - before
        if grown > MOST_PEAK and kind != FAILED:
            kind, detail = FAILED, f"took {grown / GIB:.1f} GB ({detail})"
        connection.send((number, case.variation, case.verdict, kind, detail, outcome.seconds))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Worker:
    """A process that judges one case at a time, and is replaced when it dies or takes too long."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed, self.root, self.number, self.since = seed, root, None, 0.0
        self.start()

    def start(self) -> None:
        """Start the process; it says when it is ready."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.seed, self.root), daemon=True)
        self.process.start()
        theirs.close()
        self.number, self.since = None, time.monotonic()

    def give(self, number: int | None) -> None:
        """Give it a case; None lets it end."""
        self.number, self.since = number, time.monotonic()
        self.connection.send(number)

    def result(self) -> Result | None:
        """Return what has come of its case, None where it has only become ready."""
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            return self.replaced(f"the process died ({self.process.exitcode})")

    def replaced(self, reason: str) -> Result:
        """Start another process, and return the failure of the case that this one had."""
        number = self.number
        if number is None:
            raise RuntimeError("A worker does not start.")
        self.process.kill()
        self.process.join()
        self.start()
        variation = make_case(number, self.seed, self.root / f"{number}" / "in").variation
        return number, variation, "", FAILED, reason, time.monotonic() - self.since

    @property
    def is_late(self) -> bool:
        """Whether its case takes too long."""
        return self.number is not None and time.monotonic() - self.since > SECONDS_PER_CASE


def results(numbers: list[int], seed: int, root: Path, processes: int) -> Iterator[Result]:
    """Yield what comes of each case, in the order in which they are done."""
    left, done = iter(numbers), 0
    workers = [Worker(seed, root) for _ in range(min(processes, len(numbers)))]
    while done < len(numbers):
        ready = wait([worker.connection for worker in workers], timeout=1)
        for worker in list(workers):
            came = None
            if worker.connection in ready:
                came = worker.result()
                if came is None or worker.number is not None:  # it waits for a case; a new one says when it does
                    worker.number = None
                    if (number := next(left, None)) is not None:
                        worker.give(number)
            elif worker.is_late:
                came = worker.replaced(f"took longer than {SECONDS_PER_CASE} s")
            if came is not None:
                done += 1
                yield came
    for worker in workers:
        worker.give(None)
        worker.process.join()


KINDS = (
    r"NaN or infinite values", r"is truncated or damaged", r"is truncated", r"header is damaged", r"no NIfTI header",
    r"is empty", r"cannot be read", r"differ in shape", r"differ in spacing", r"differ in origin or direction",
    r"holds \d+ channels", r"values a voxel", r"spacing is", r"would be resampled", r"normalised by",
    r"no modality is available", r"voxels are .* \(NIfTI", r"it has \d+ dimensions", r"holds no voxel", r"no NRRD file",
    r"broken PNG file", r"broken data stream", r"cannot identify image file", r"exceeds limit", r"[Tt]runcated",
)  # fmt: skip


def kind_of(message: str) -> str:
    """Return the kind of message of a refusal: that of its first problem."""
    first = message.split("\n  - ")[min(1, message.count("\n  - "))]
    found = next((found[0] for kind in KINDS if (found := re.search(kind, first))), None)
    return re.sub(r"\d+", "N", found or re.sub(r"case .\w+.: |patient_\S+: ", "", first)[:70])


def table(done: list[Result]) -> str:
    """Return how many cases had which outcome, and which variations failed."""
    outcomes = Counter(kind if kind != "refused" else f"refused: {kind_of(text)}" for _, _, _, kind, text, _ in done)
    rows = [
        f"{count:6d}  {outcome}" for outcome, count in sorted(outcomes.items(), key=lambda pair: (pair[0][0], -pair[1]))
    ]
    total = Counter(kind for _, _, _, kind, _, _ in done)
    rows.append(
        f"{len(done):6d}  in all: " + ", ".join(f"{total[kind]} {kind}" for kind in (PREDICTED, "refused", FAILED))
    )
    slowest = max(done, key=lambda result: result[5])
    rows.append(f"the slowest case: {slowest[0]} ({slowest[1]}), {slowest[5]:.1f} s")
    return "\n".join(rows)


def main() -> int:
    """Judge the cases and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=2000, help="number of cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--start", type=int, default=0, metavar="NUMBER", help="the first case (default: 0)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="judge this case alone, and print what comes of it")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where the files of failing cases (or of --only) go"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write every outcome there, a line a case")
    args = parser.parse_args()
    numbers = [args.only] if args.only is not None else list(range(args.start, args.start + args.n))
    begun, done = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="fuzz_inputs_") as name:
        root = Path(name)
        for result in tqdm(results(numbers, args.seed, root, args.processes), total=len(numbers), desc="Cases"):
            number, variation, verdict, kind, detail, seconds = result
            done.append(result)
            if kind == FAILED or args.only is not None:
                tqdm.write(
                    f"{number} ({variation}, must be: {verdict or 'any'}) {kind} after {seconds:.1f} s: {detail}"
                )
                if args.keep:
                    shutil.copytree(root / f"{number}" / "in", args.keep / f"{args.seed}_{number}", dirs_exist_ok=True)
            shutil.rmtree(root / f"{number}", ignore_errors=True)
    if args.log:
        lines = [f"{number}\t{variation}\t{kind}\t{detail!r}" for number, variation, _, kind, detail, _ in sorted(done)]
        args.log.write_text("\n".join(lines) + "\n")
    print(f"\nseed {args.seed}, cases {numbers[0]} to {numbers[-1]}, {time.monotonic() - begun:.0f} s\n{table(done)}")
    return 1 if any(result[3] == FAILED for result in done) else 0


if __name__ == "__main__":
    sys.exit(main())
