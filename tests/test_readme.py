"""Every command and the Python example of the README, run on a tiny phantom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import CONFIGURATION, PLANS, SECTIONS, Workspace

pytestmark = pytest.mark.integration

README = Path(__file__).parents[1] / "README.md"
INSTALLING = ("git clone", "pip install", "bash ")
"""Commands that this test is itself part of, or that need another machine; each has a script of its own."""

SMALLER = {
    "unimrseg demo": " -n 5 --unseen 2 --shape 24 24 24",
    "unimrseg plan": " -gpu_memory_target 1 --base-features 8 -np 1",
    "unimrseg train": " -device cpu",
    "unimrseg predict": " -device cpu -npp 0 -nps 0 --disable_tta",
    "unimrseg evaluate": " -device cpu --disable_tta",
    "unimrseg reconstruct": " -device cpu --disable_tta",
    "nnUNetv2_train": " -device cpu",
    "nnUNetv2_predict": " -device cpu -npp 0 -nps 0 --disable_tta",
}
"""What is added so that a command takes seconds, on any machine."""


def blocks(language: str, file: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    return [line for line in lines if not line.startswith(INSTALLING)]


def smaller(command: str) -> str:
    added = next((more for start, more in SMALLER.items() if command.startswith(start)), "")
    small = " ".join(
        f"{section}.num_epochs=1 {section}.num_iterations_per_epoch=1 {section}.num_val_iterations_per_epoch=1"
        for section in SECTIONS
    )
    budget = f"\nunimrseg configure -d 900 -c {CONFIGURATION} -p {PLANS} --set {small}"
    return command + added + (budget if command.startswith("unimrseg plan") else "")


def test_every_command_of_the_readme_runs(tmp_path):
    made = Workspace(tmp_path, dataset=900, dataset_name="Dataset900_UniMRSegPhantom")
    for folder in (made.raw, made.preprocessed, made.results):
        folder.mkdir()
    preparing = ("unimrseg demo", "unimrseg plan")
    first = [command for command in commands() if command.startswith(preparing)]
    then = [command for command in commands() if not command.startswith(preparing)]
    assert len(first) == 2 and len(then) >= 10
    script = f"set -euo pipefail\ncd {tmp_path}\n"
    made.run("bash", "-c", script + "\n".join(map(smaller, first)), nnUNet_n_proc_DA="1")
    retrofit = next(number for number, command in enumerate(then) if "--from-checkpoint" in command)
    trained = made.model_folder("UniMRSegModalityDropoutTrainer") / "fold_0" / "checkpoint_final.pth"
    then.insert(retrofit, f"cp {trained} CHECKPOINT")  # with the keys of a stock nnU-Net's
    patients = tmp_path / "PATIENTS"
    shutil.copytree(made.raw / made.dataset_name / "imagesTs", patients)
    min(patients.glob("*_0001.nii.gz")).unlink()
    made.run("bash", "-c", script + "\n".join(map(smaller, then)), nnUNet_n_proc_DA="0", nnUNet_extTrainer="")
    for folder in ("SEGMENTATIONS", "SEGMENTATIONS_STOCK", "SEGMENTATIONS_RETROFIT"):
        assert len(list((tmp_path / folder).glob("*.nii.gz"))) == 2, folder
    assert len(list((tmp_path / "SCANS").glob("*_0001.nii.gz"))) == 1
    files = {name: sorted(patients.glob(f"*_{number:04d}.nii.gz"))[-1] for name, number in (("FLAIR", 0), ("T1", 1))}
    values = {
        "MODEL_FOLDER": made.model_folder("UniMRSegStage3Trainer"),
        "STAGE_1_FOLDER": made.model_folder("UniMRSegStage1Trainer"),
        "T1_FILE": files["T1"],
        "FLAIR_FILE": files["FLAIR"],
    }  # fmt: skip
    given = "".join(f"{name} = {str(value)!r}\n" for name, value in values.items())
    for example in (*blocks("python"), *blocks("python", README.parent / "docs" / "evaluation.md")):
        (tmp_path / "example.py").write_text(given + example)
        made.run("bash", "-c", f"cd {tmp_path} && python example.py")


def test_the_map_names_every_folder_and_the_readme_is_short():
    root, text = README.parent, README.read_text()
    assert len(text.splitlines()) <= 130
    map_of_the_tree = (root / "CONTRIBUTING.md").read_text()
    for module in (root / "nnunetv2_unimrseg").glob("*.py"):
        assert module.name in map_of_the_tree, module.name
    for package in (root / "nnunetv2_unimrseg").glob("*/__init__.py"):
        assert f"{package.parent.name}/" in map_of_the_tree, package.parent.name
    for name in re.findall(r"\]\(((?:docs/)?[\w./-]+\.\w+)\)", text):
        assert (root / name).exists(), name
