"""Commands in a process group of their own, as a shell starts them, that Ctrl-C ends once they are under way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNDER_WAY = "the slow part is under way"
MOST_S = 240.0

SCRIPT = f"""
import os, sys, time

def slow(*_, **__):
    print("{UNDER_WAY}", flush=True)
    time.sleep(float(os.environ.get("SLOW_S", 300)))

def half_written(self, segmentation, path, properties):
    with open(path, "wb") as file:
        file.write(b"half")
    slow()

where = os.environ["SLOW"]  # other processes import this file too
if where == "network":
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    nnUNetPredictor.predict_logits_from_preprocessed_data = slow
elif where == "reading":
    from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor
    UniMRSegPreprocessor.run_case = slow
elif where == "writing":
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    SimpleITKIO.write_seg = half_written
elif where == "fingerprint":
    from nnunetv2_unimrseg.planners import fingerprint
    slow.__name__ = slow.__qualname__ = "analyse_case"  # by which it is pickled
    slow.__module__ = fingerprint.__name__
    fingerprint.analyse_case = slow
elif where == "preprocessing":
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    slow.__name__ = "run_case_save"  # by which it is pickled
    DefaultPreprocessor.run_case_save = slow

if __name__ == "__main__":
    from nnunetv2_unimrseg.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, the seconds from Ctrl-C to its end, who was left."""

    code: int
    out: str
    error: str
    seconds: float
    left: list[str]


def command_with_a_slow_part(folder: Path, *arguments: object) -> list[str]:
    """Return the words that run `unimrseg`, part of which, named by the variable SLOW, does not end by itself
    before SLOW_S seconds."""
    script = folder / "unimrseg_with_a_slow_part.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script), *map(str, arguments)]


@contextlib.contextmanager
def started(words: list[str], folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen, Path, Path]]:
    """Start a command in its own process group; whatever is left of it at the end is killed."""
    out, error = folder / "stdout.txt", folder / "stderr.txt"
    with out.open("w") as to_out, error.open("w") as to_error:
        process = subprocess.Popen(
            words, stdout=to_out, stderr=to_error, start_new_session=True, env={**os.environ, **environment}
        )
    try:
        yield process, out, error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def interrupted(
    words: list[str], folder: Path, *, when: str = UNDER_WAY, wait_s: float = 0, times: int = 1, **environment: str
) -> Ended:
    """Press Ctrl-C after a command has printed `when`, as a terminal does: every process of the group gets it."""
    with started(words, folder, **environment) as (process, out, error):
        deadline = time.monotonic() + MOST_S
        while when not in out.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert when in out.read_text(), f"it never was under way:\n{out.read_text()}\n{error.read_text()}"
        time.sleep(wait_s)
        since = time.monotonic()
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        code = process.wait(30)
        seconds = time.monotonic() - since
        left = members(process.pid)
        for _ in range(50):  # multiprocessing's resource tracker ends a moment after
            if not left:
                break
            time.sleep(0.1)
            left = members(process.pid)
        return Ended(code, out.read_text(), error.read_text(), seconds, left)


def members(group: int) -> list[str]:
    """Return the command lines of the living processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found
