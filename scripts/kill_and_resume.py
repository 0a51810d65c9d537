"""Kill a training at random moments, resume it each time with the same command, and check that nothing is lost.

    python scripts/kill_and_resume.py --kills 20 --seed 1

Generates a tiny phantom, plans it, and trains on the CPU with `unimrseg train`, a checkpoint after every epoch. The
whole process group is killed (SIGKILL): while a checkpoint is written (as soon as the unfinished file is seen), in an
epoch, while the final checkpoint is written, and in the end validation. After every kill all checkpoints must be whole,
and no epoch that one records may be lost; the same command must go on from the newest checkpoint. In the end nothing
unfinished may be left, and the model must predict. Prints a table; the exit code is 1 where anything was not so.

A start takes about ten seconds, of which nnU-Net's imports are the most; 20 kills about eight minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nnunetv2_unimrseg.data.phantom import write_phantom_dataset
from nnunetv2_unimrseg.stages import STAGES, TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.files import file_problem

NUMBER, DATASET = 905, "Dataset905_Killed"
CONFIGURATION, PLANS = "3d_fullres", "nnUNetUniMRSegPlans"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
WRITE, STEP, FINAL, VALIDATION = "write", "step", "final", "validation"
LONGEST_DELAY = {WRITE: 0.02, STEP: 1.0, FINAL: 0.02, VALIDATION: 1.0}
"""Seconds between what a kill waits for and the kill: up to this long; in a step, up to the last epoch's length."""
NOT_KILLED = "not killed: ended before"
POLL_SECONDS = 0.0005
PREDICTING = r"(predicting|reconstructing) \w"
"""Of a line in the log of the end validation."""
LONGEST_RUN_SECONDS = 600
WIDTHS = (4, 11, 7, 46, 36, 28)


@dataclass(frozen=True)
class Place:
    """nnU-Net's folders and the dataset in them."""

    root: Path
    dataset: str = DATASET

    @property
    def env(self) -> dict[str, str]:
        """The environment of the commands."""
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        few = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **folders, **few, "PATH": path}

    def fold(self, stage: str) -> Path:
        """Return where a stage's checkpoints lie."""
        return (
            self.root / "results" / self.dataset / f"{TRAINER_OF_SECTION[stage]}__{PLANS}__{CONFIGURATION}" / "fold_0"
        )

    def epochs(self, stage: str) -> dict[str, int]:
        """Return each checkpoint of a stage that can be read -> the epochs that were done when it was written."""
        found = {}
        for name in CHECKPOINTS:
            path = self.fold(stage) / name
            if file_problem(path) is None:
                found[name] = torch.load(path, map_location="cpu", weights_only=False)["current_epoch"]
        return found

    def unfinished(self) -> set[Path]:
        """Return the files that some process has begun to write, or was killed over."""
        return set((self.root / "results").rglob(".unfinished-*"))


@dataclass
class Kill:
    """One kill: what was wanted, and what came of it."""

    stage: str
    moment: str
    phase: str = NOT_KILLED
    there: dict[str, int] = field(default_factory=dict)
    resumed: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def newest(self) -> int:
        """Epochs that were done according to the newest checkpoint."""
        return max(self.there.values(), default=0)


def planned_kills(number: int, stages: list[str], generator: random.Random) -> list[Kill]:
    """Divide kills among stages; a stage's last ones hit its final checkpoint and its end validation."""
    kills = []
    for index, stage in enumerate(stages):
        count = len(range(index, number, len(stages)))
        last = {0: [], 1: [], 2: [], 3: [FINAL]}.get(count, [FINAL, VALIDATION])
        moments = [(WRITE, WRITE, STEP)[turn % 3] for turn in range(count - len(last))]
        generator.shuffle(moments)
        kills += [Kill(stage, moment) for moment in moments + last]
    return kills


class Run:
    """One `unimrseg train`, in a process group of its own, and what it has printed so far."""

    def __init__(self, place: Place, log: Path) -> None:
        self.place, self.log = place, log
        self.before = place.unfinished()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ["unimrseg", "train", place.dataset, CONFIGURATION, "0", "-p", PLANS, "-device", "cpu"],
                env=place.env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def of_stage(self, stage: str) -> str:
        """Return what was printed while this run trained a stage, "" before."""
        text = self.log.read_text(errors="replace")
        return text.partition(f"-tr {TRAINER_OF_SECTION[stage]} ")[2].partition("\nnnUNetv2_train ")[0]

    def is_past(self, stage: str) -> bool:
        """Whether this run has gone on to a later stage."""
        text = self.log.read_text(errors="replace")
        return any(f"-tr {TRAINER_OF_SECTION[later]} " in text for later in STAGES[STAGES.index(stage) + 1 :])

    def writing(self, stage: str, name: str = "checkpoint_") -> list[str]:
        """Return the files that this run is writing into a stage's folder."""
        with contextlib.suppress(FileNotFoundError):
            found = [Path(entry.path) for entry in os.scandir(self.place.fold(stage))]
            return [
                path.name
                for path in found
                if path.name.startswith(".unfinished-") and path not in self.before and name in path.name
            ]
        return []

    def wait_for(self, kill: Kill, generator: random.Random) -> None:
        """Wait for the moment of a kill, or until the run ends or the stage is past it."""
        times, seen, was_there = generator.randint(1, 2), 0, False
        begun = time.monotonic()
        for poll in itertools.count():
            if self.process.poll() is not None or time.monotonic() - begun > LONGEST_RUN_SECONDS:
                return
            if kill.moment in (WRITE, FINAL):
                names = self.writing(kill.stage, "checkpoint_")
                is_last = any(name.endswith(CHECKPOINTS[0]) for name in names)
                seen += bool(names) and not was_there
                was_there = bool(names)
                come = is_last or (kill.moment == WRITE and seen >= times)
                wait = POLL_SECONDS
            else:
                printed = self.of_stage(kill.stage)
                come = len(re.findall(r"Epoch \d+\s", printed)) >= times or "Training done." in printed
                if kill.moment == VALIDATION:
                    come = re.search(PREDICTING, printed) is not None
                wait = 20 * POLL_SECONDS
            if come:
                if kill.moment in (WRITE, FINAL) and generator.random() < 0.5:
                    self._wait_for_bytes(kill.stage, names[0])
                longest = LONGEST_DELAY[kill.moment]
                if kill.moment == STEP and (times_taken := re.findall(r"Epoch time: ([\d.]+) s", printed)):
                    longest = float(times_taken[-1])
                time.sleep(generator.uniform(0, longest))
                return
            if poll % 200 == 0 and self.is_past(kill.stage):
                return
            time.sleep(wait)

    def _wait_for_bytes(self, stage: str, name: str) -> None:
        """Wait until the first bytes of an unfinished file are on the disk; the library writes few large pieces."""
        path = self.place.fold(stage) / name
        with contextlib.suppress(FileNotFoundError):
            while path.stat().st_size == 0 and self.process.poll() is None:
                time.sleep(POLL_SECONDS / 5)

    def kill(self) -> None:
        """Kill the process group and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.killpg(self.process.pid, signal.SIGKILL)
                time.sleep(0.01)

    def phase(self, stage: str) -> str:
        """Say what a stage was doing when the run ended."""
        if half := self.writing(stage, ""):
            path = self.place.fold(stage) / half[0]
            return f"writing {half[0].rpartition('-')[2]}, {path.stat().st_size / 1e6:.2f} MB there"
        printed = self.of_stage(stage)
        epochs = re.findall(r"Epoch (\d+)\s", printed)
        if re.search(PREDICTING, printed):
            return "end validation"
        if "Training done." in printed:
            return "after the last epoch"
        if not epochs:
            return "before its first epoch" if printed else "before the stage"
        ended = "train_loss" in printed.rpartition(f"Epoch {epochs[-1]}")[2]
        return f"epoch {epochs[-1]}, {'after validation' if ended else 'steps or validation'}"


def check_after(place: Place, kill: Kill, before: dict[str, int]) -> None:
    """Check what a kill left: whole checkpoints, and no epoch less than before."""
    for stage in STAGES:
        for path in place.fold(stage).glob("checkpoint_*.pth"):
            if problem := file_problem(path):
                kill.problems.append(f"{stage}/{path.name}: {problem}")
        newest = max(place.epochs(stage).values(), default=0)
        if newest < before[stage]:
            kill.problems.append(f"{stage} had {before[stage]} epochs, has {newest}")
        before[stage] = newest
    kill.there = place.epochs(kill.stage)


def check_resumed(run: Run, kill: Kill) -> None:
    """Check where the run after a kill went on."""
    printed = run.of_stage(kill.stage)
    if CHECKPOINTS[0] in kill.there:
        finished = f"{kill.stage} is finished already" in run.log.read_text()
        kill.resumed = "finished already" if finished else "end validation"
        if not finished and "--val" not in printed.partition("\n")[0]:
            kill.problems.append("was trained again though its final checkpoint was there")
        return
    named = re.search(r"Continuing from (\S+), the newest whole checkpoint, after (\d+) epoch", printed)
    first = re.search(r"Epoch (\d+)\s", printed)
    done = int(named[2]) if named else 0
    kill.resumed = f"epoch {done} ({Path(named[1]).name})" if named else f"epoch {done} (from the start)"
    if done != kill.newest or bool(named) != bool(kill.there):
        kill.problems.append(f"{kill.newest} epochs were there, went on after {done}")
    if named and kill.there.get(Path(named[1]).name) != kill.newest:
        kill.problems.append(f"went on from {named[1]}, not from the newest")
    if first and int(first[1]) != done:
        kill.problems.append(f"its first epoch was {first[1]}, not {done}")


def kill_and_resume(place: Place, kills: list[Kill], generator: random.Random, logs: Path) -> list[str]:
    """Train, with these kills; returns what is wrong in the end."""
    logs.mkdir(parents=True, exist_ok=True)
    before = dict.fromkeys(STAGES, 0)
    previous = None
    for number, kill in enumerate([*kills, None], 1):
        run = Run(place, logs / f"run_{number:02d}.txt")
        if kill is None:
            run.process.wait()
        else:
            run.wait_for(kill, generator)
            ended = run.process.poll()
            run.kill()
            if ended is None:
                kill.phase = run.phase(kill.stage)
            elif ended != 0:
                kill.problems.append(f"ended by itself with exit code {ended}, see {run.log}")
            check_after(place, kill, before)
        if previous is not None:
            check_resumed(run, previous)
            print(row(number - 1, previous), flush=True)
        previous = kill
    return end_problems(place, run)


def end_problems(place: Place, run: Run) -> list[str]:
    """Check the training that was let run to its end, and predict with its model."""
    problems = []
    if run.process.returncode != 0:
        problems.append(f"the last run ended with exit code {run.process.returncode}, see {run.log}")
    problems += [f"{path} is left" for path in place.unfinished()]
    for stage in (stage for stage in STAGES if place.fold(stage).is_dir()):
        for name in (CHECKPOINTS[0], "progress.png", "validation/summary.json"):
            if problem := file_problem(place.fold(stage) / name):
                problems.append(f"{stage}/{name}: {problem}")
    out = place.root / "predicted"
    command = ["unimrseg", "predict", "-i", place.root / "raw" / place.dataset / "imagesTs", "-o", out, "-d",
               place.dataset, "-c", CONFIGURATION, "-p", PLANS, "-f", "0", "-device", "cpu", "--disable_tta",
               "-npp", "0", "-nps", "0"]  # fmt: skip
    result = subprocess.run(command, env=place.env, capture_output=True, text=True)
    if result.returncode != 0 or not list(out.glob("*.nii.gz")):
        problems.append(f"the model does not predict: {result.stderr[-500:]}")
    return problems


def row(number: int | str, kill: Kill) -> str:
    """Return a kill's line of the table."""
    there = ", ".join(f"{name[len('checkpoint_') : -len('.pth')]} {epoch}" for name, epoch in kill.there.items())
    cells = (str(number), kill.moment, kill.stage, kill.phase, there or "none", kill.resumed)
    outcome = "; ".join(kill.problems) or "good"
    return "".join(f"{cell:<{width}} " for cell, width in zip(cells, WIDTHS, strict=True)) + outcome


def heading() -> str:
    """Return the table's first line."""
    cells = ("kill", "moment", "stage", "phase when killed", "there (epochs done)", "resumed at")
    return "".join(f"{cell:<{width}} " for cell, width in zip(cells, WIDTHS, strict=True)) + "outcome"


def prepare(place: Place, epochs: int) -> None:
    """Write the phantom, plan it for a tiny network, and set few short epochs with a checkpoint after each."""
    raw = place.root / "raw" / place.dataset
    write_phantom_dataset(raw, num_training=5, num_unseen=1, shape=(24, 24, 24), seed=3)
    number = ["-d", place.dataset, "-c", CONFIGURATION]
    values = {"num_epochs": epochs, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "save_every": 1}
    settings = [f"{stage}.{name}={value}" for stage in STAGES for name, value in values.items()]
    for command in (
        ["unimrseg", "plan", *number, "-gpu_memory_target", "1", "--base-features", "16", "-np", "1"],
        ["unimrseg", "configure", *number, "-p", PLANS, "--set", *settings],
    ):
        subprocess.run(command, env=place.env, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    """Run the trial and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="to kill in (default: all)")
    parser.add_argument("--epochs", type=int, default=8, help="of each stage (default: 8)")
    parser.add_argument("--folder", type=Path, help="an empty one to work in, which stays (default: a temporary one)")
    args = parser.parse_args()
    if args.folder and args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    root = args.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    start = time.monotonic()
    generator = random.Random(args.seed)
    place = Place(root.resolve())
    prepare(place, args.epochs)
    kills = planned_kills(args.kills, sorted(args.stages), generator)
    print(heading(), flush=True)
    problems = kill_and_resume(place, kills, generator, place.root / "logs")
    for problem in problems:
        print(f"in the end: {problem}")
    bad = sum(bool(kill.problems) for kill in kills)
    killed = sum(kill.phase != NOT_KILLED for kill in kills)
    in_writing = sum(kill.phase.startswith("writing") for kill in kills)
    print(
        f"{killed} kills, {in_writing} of them while a file was written: {len(kills) - bad} good, {bad} bad; "
        f"{len(problems)} problems in the end; {(time.monotonic() - start) / 60:.1f} minutes"
    )
    if not args.folder and not (bad or problems):
        shutil.rmtree(root)
    return 1 if bad or problems else 0


if __name__ == "__main__":
    sys.exit(main())
