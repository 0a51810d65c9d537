"""A tiny phantom, planned and trained once a session by the real commands, for the integration tests."""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import preloaded_python
import pytest
from filelock import FileLock

BIN = preloaded_python.start() or preloaded_python.REAL_BIN
PYTHON = str(BIN / "python")
multiprocessing.spawn.set_executable(PYTHON)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetUniMRSegPlans"
PLANNED_DATASET = "Dataset007_Tiny"
SECTIONS = ("stage1", "stage2", "stage3", "modality_dropout", "retrofit")
TRAINERS = ("UniMRSegStage1Trainer", "UniMRSegStage2Trainer", "UniMRSegStage3Trainer", "UniMRSegModalityDropoutTrainer")


PLAN = """import sys
from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.planners import fingerprint
fingerprint.NUM_FOREGROUND_VOXELS = 10**5
sys.exit(main(sys.argv[1:]))
"""
"""`unimrseg` with fewer voxels drawn for the intensities: nnU-Net's 100 million take ten seconds, whatever the size."""


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's three folders, the environment that names them, and the dataset in them."""

    root: Path
    dataset: int = 901
    dataset_name: str = "Dataset901_UniMRSegPhantom"
    configuration: str = CONFIGURATION
    plans: str = PLANS

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def env(self) -> dict[str, str]:
        extension = Path(__import__("nnunetv2_unimrseg").__file__).parent / "nnunet_ext"
        return {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": str(extension),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, *command: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the virtual environment; `environment` adds variables; a failure shows all output."""
        words = [str(word) for word in command]
        result = subprocess.run(
            [shutil.which(words[0], path=self.env["PATH"]) or words[0], *words[1:]],
            env={**self.env, **environment},
            capture_output=True,
            text=True,
        )
        if check and result.returncode != 0:
            pytest.fail(f"{' '.join(words)} ended with {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def train(self, trainer: str, *more: object, fold: int = 0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run stock nnUNetv2_train on the CPU."""
        return self.run(
            "nnUNetv2_train", self.dataset, self.configuration, fold,
            "-tr", trainer, "-p", self.plans, "-device", "cpu", *more,
            check=check, nnUNet_n_proc_DA="0",
        )  # fmt: skip

    def model_folder(self, trainer: str) -> Path:
        return self.results / self.dataset_name / f"{trainer}__{self.plans}__{self.configuration}"

    def set_values(self, *assignments: str) -> None:
        self.run(
            "unimrseg", "configure", "-d", self.dataset, "-c", self.configuration, "-p", self.plans,
            "--set", *assignments,
        )  # fmt: skip


def make_planned_workspace(
    root: Path, num_training: int = 5, change_raw: Callable[[Path], None] | None = None
) -> Workspace:
    """Write the phantom, plan it for a tiny network and set one epoch of two steps for each stage.

    `change_raw` changes the files of the raw dataset before it is planned.
    """
    from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

    workspace = Workspace(root)
    for folder in (workspace.raw, workspace.preprocessed, workspace.results):
        folder.mkdir(parents=True)
    write_phantom_dataset(
        workspace.raw / workspace.dataset_name, num_training=num_training, num_unseen=3, shape=(24, 24, 24), seed=3
    )
    if change_raw:
        change_raw(workspace.raw / workspace.dataset_name)
    workspace.run(
        "python", "-c", PLAN, "plan", "-d", workspace.dataset, "-c", workspace.configuration,
        "-gpu_memory_target", 1, "--base-features", 8, "-np", 1,
    )  # fmt: skip
    workspace.set_values(
        *(f"{section}.num_epochs=1" for section in SECTIONS),
        *(f"{section}.num_iterations_per_epoch=2" for section in SECTIONS),
        *(f"{section}.num_val_iterations_per_epoch=1" for section in SECTIONS),
    )
    return workspace


@pytest.fixture
def fresh_processes() -> Iterator[None]:
    """Processes that a test spawns are fresh interpreters, where processes themselves are the point."""
    multiprocessing.spawn.set_executable(sys.executable)
    yield
    multiprocessing.spawn.set_executable(PYTHON)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders, where nothing is yet; returns that of results."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "results"


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Path:
    """nnU-Net's folders with the plans of one dataset."""
    import tiny

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_preprocessed" / PLANNED_DATASET
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps({**tiny.plans(), "plans_name": "nnUNetPlans"}, indent=4))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    return folder / "nnUNetPlans.json"


@pytest.fixture
def preprocessed(planned) -> Path:
    """As `planned`, with the folder of a preprocessed case."""
    data = planned.parent / "nnUNetPlans_3d_fullres"
    data.mkdir()
    (data / "case.pkl").touch()
    return planned


@pytest.fixture
def commands(monkeypatch) -> list[tuple[list[str], dict]]:
    """The training commands of a run, with their environment; they are recorded instead of run."""
    recorded = []

    def record(words: list[str], environment: dict[str, str]) -> int:
        recorded.append((words, environment))
        return 0

    monkeypatch.setattr("nnunetv2_unimrseg.nnunet.stage_training.run_child", record)
    return recorded


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The phantom with all three stages and the control trained on fold 0, by stock nnUNetv2_train.

    It is made once for all workers of pytest-xdist; each module gets a copy, so that its tests may change it.
    """
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    original, done = shared / "workspace_original", shared / "workspace_original.done"
    with FileLock(f"{original}.lock"):
        if not done.exists():
            made = make_planned_workspace(original)
            for trainer in TRAINERS:
                made.train(trainer)
            done.touch()
    copy = tmp_path_factory.mktemp("workspace") / "nnunet"
    shutil.copytree(original, copy)
    yield Workspace(copy)
    shutil.rmtree(copy)
