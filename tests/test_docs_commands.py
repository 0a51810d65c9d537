"""The commands and examples of the documentation, run on a tiny phantom."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import CONFIGURATION, PLANS, PYTHON, SECTIONS, Workspace
from documentation import (
    DOCS,
    blocks,
    shell_commands,
)

SMALLER = {
    "unimrseg plan": " -gpu_memory_target 1 --base-features 8 -np 1",
    "unimrseg train": " -device cpu",
    "unimrseg predict": " -device cpu -npp 0 -nps 0 --disable_tta",
    "unimrseg evaluate": " -device cpu --disable_tta --subsets single complete FLAIR+T1",
    "unimrseg reconstruct": " -device cpu --disable_tta",
    "nnUNetv2_predict": " -device cpu -npp 0 -nps 0 --disable_tta",
}
"""What is added so that a command takes seconds, on any machine."""

BUDGET = " ".join(
    f"{section}.num_epochs=1 {section}.num_iterations_per_epoch=1 {section}.num_val_iterations_per_epoch=1"
    for section in SECTIONS
)

IN_ONE_PROCESS = """
import json, sys
from nnunetv2_unimrseg.cli.main import main
for command in json.loads(sys.argv[1]):
    print("$", *command, flush=True)
    code = main(command[1:])
    if code:
        sys.exit(code)
"""


def smaller(command: str) -> str:
    return command + next((more for start, more in SMALLER.items() if command.startswith(start)), "")


def write_patients(made: Workspace, folder: Path) -> None:
    """Write the phantom as the tutorial's scans lie on disk: one patient is new, the others are to train with.

    Of these, one lacks a scan and one the reference.
    """
    from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

    phantom = folder / "phantom"
    write_phantom_dataset(phantom, num_training=7, num_unseen=1, shape=(24, 24, 24), seed=7)
    endings = {"0000": "t2f", "0001": "t1n", "0002": "t1c", "0003": "t2w"}
    for split, place in (("Tr", "BraTS"), ("Ts", "NewPatients")):
        for scan in sorted((phantom / f"images{split}").glob("*.nii.gz")):
            case, number = scan.name.removesuffix(".nii.gz").rsplit("_", 1)
            patient = f"BraTS-GLI-{case[-3:]}00-000"
            (folder / place / patient).mkdir(parents=True, exist_ok=True)
            shutil.copy(scan, folder / place / patient / f"{patient}-{endings[number]}.nii.gz")
            label = phantom / f"labels{split}" / f"{case}.nii.gz"
            shutil.copy(label, folder / place / patient / f"{patient}-seg.nii.gz")
    *_, unlabelled, incomplete = sorted((folder / "BraTS").iterdir())
    (unlabelled / f"{unlabelled.name}-seg.nii.gz").unlink()
    (incomplete / f"{incomplete.name}-t1c.nii.gz").unlink()
    (new,) = (folder / "NewPatients").iterdir()
    for ending in ("t1c", "t2w", "t2f"):
        (new / f"{new.name}-{ending}.nii.gz").unlink()


@pytest.mark.integration
def test_the_tutorial_runs(tmp_path):
    made = Workspace(tmp_path, dataset=600, dataset_name="Dataset600_BrainTumour")
    for folder in (made.raw, made.preprocessed, made.results):
        folder.mkdir()
    write_patients(made, tmp_path)
    page = DOCS / "tutorial.md"
    bash = [block.replace("\\\n", " ") for block in blocks(page, "bash")]
    commands = [line for block in bash for line in block.strip().splitlines()]
    planned = next(number for number, command in enumerate(commands) if command.startswith("unimrseg plan")) + 1
    lines = [smaller(command) for command in commands]
    lines.insert(planned, f"unimrseg configure -d 600 -c {CONFIGURATION} -p {PLANS} --set {BUDGET}")
    result = made.run("bash", "-c", "\n".join(["set -euo pipefail", f"cd {tmp_path}", *lines]), nnUNet_n_proc_DA="0")
    assert re.search(r"FLAIR\+T1\+T1ce\+T2 +6 +5\n +FLAIR\+T1\+T2 +1 +1\n +all +7 +6\n", result.stdout)
    assert json.loads((made.raw / made.dataset_name / "dataset.json").read_text())["numTraining"] == 7
    assert len(list((tmp_path / "SEGMENTATIONS").glob("*.nii.gz"))) == 1
    (case,) = json.loads((tmp_path / "SEGMENTATIONS" / "modalities.json").read_text()).values()
    assert case == {"available": ["T1"], "missing": ["FLAIR", "T1ce", "T2"]}
    assert (tmp_path / "EVALUATION" / "report.html").is_file() and (
        tmp_path / "SEGMENTATIONS" / "report.html"
    ).is_file()
    expected = json.loads((tmp_path / "SEGMENTATIONS" / "report.json").read_text())["cases"]
    assert all(entry["expected_dice"] for entry in expected.values())


TRAINED = ("predict", "evaluate-and-compare", "reconstruct", "share-a-model", "clusters-and-parts")
"""How-to pages whose commands need a trained model, in the order in which they are run."""


@pytest.mark.integration
def test_the_how_to_pages_and_python_examples_run(workspace, tmp_path):
    """With the session's model: all commands of `TRAINED` but trainings, then every example in Python."""
    raw = workspace.raw / workspace.dataset_name
    patients, images, labels = tmp_path / "PATIENTS", tmp_path / "IMAGES", tmp_path / "LABELS"
    shutil.copytree(raw / "imagesTs", patients)
    shutil.copytree(raw / "imagesTs", images)
    shutil.copytree(raw / "labelsTs", labels)
    for case in sorted({file.name[:-12] for file in patients.iterdir()})[1:]:
        for file in patients.glob(f"{case}_*"):
            file.unlink()
    min(patients.glob("*_0002.nii.gz")).unlink()
    own: list[list[str]] = []
    stock: list[str] = []
    for page in (DOCS / "how-to" / f"{each}.md" for each in TRAINED):
        for block in blocks(page, "bash"):
            for words in shell_commands(block):
                line = smaller(shlex.join(words)).replace("-d 900", f"-d {workspace.dataset}")
                line = line.replace("MODEL_FOLDER", str(workspace.model_folder("UniMRSegStage3Trainer")))
                if words[:2] in (["unimrseg", "train"], ["unimrseg", "env"]):
                    continue
                if words[0] == "unimrseg":
                    own += [shlex.split(line)]
                else:
                    stock.append(line)
    assert len(own) >= 12 and len(stock) == 3
    parts = [number for number, words in enumerate(own) if "-num_parts" in words]
    for number in reversed(parts):  # the variable of the loop was taken for 0
        second = list(own[number])
        second[second.index("-part_id") + 1] = "1"
        own.insert(number + 1, second)
    run = [str(part) for part in (PYTHON, "-c", IN_ONE_PROCESS, json.dumps(own))]
    made = workspace.run("bash", "-c", f"cd {tmp_path} && {shlex.join(run)}")
    assert made.stdout.count("$ unimrseg") == len(own)
    workspace.run("bash", "-c", "\n".join(["set -euo pipefail", f"cd {tmp_path}", *stock]))
    for folder in ("EVALUATION", "EVALUATION_OF_CONTROL", "EVALUATION_OF_OTHERS", "EVALUATION_IN_PARTS", "COMPARISON"):
        assert (tmp_path / folder / "report.html").is_file(), folder
    assert same_segmentations(tmp_path / "SEGMENTATIONS", tmp_path / "SEGMENTATIONS_OF_NNUNET")
    assert (tmp_path / "model.zip").is_file()

    flair, t1 = (min(patients.glob(f"*_{number}.nii.gz")) for number in ("0000", "0001"))
    given = {
        "MODEL_FOLDER": workspace.model_folder("UniMRSegStage3Trainer"),
        "STAGE_1_FOLDER": workspace.model_folder("UniMRSegStage1Trainer"),
        "T1_FILE": t1,
        "FLAIR_FILE": flair,
    }
    examples = blocks(DOCS / "how-to" / "python.md", "python")
    assert len(examples) == 6
    start = "".join(f"{variable} = {str(value)!r}\n" for variable, value in given.items())
    (tmp_path / "example.py").write_text(start + "\n".join(examples))
    result = workspace.run("bash", "-c", f"cd {tmp_path} && {shlex.quote(PYTHON)} example.py")
    assert "holds no finished evaluation" in result.stdout
    for file in ("EVALUATION_FROM_PYTHON/report.html", "COMPARISON_FROM_PYTHON/report.html"):
        assert (tmp_path / file).is_file(), file


def same_segmentations(first: Path, second: Path) -> bool:
    import SimpleITK as sitk

    files = sorted(file.name for file in first.glob("*.nii.gz"))
    assert files == sorted(file.name for file in second.glob("*.nii.gz")) and files
    return all(
        (
            sitk.GetArrayFromImage(sitk.ReadImage(str(first / file)))
            == sitk.GetArrayFromImage(sitk.ReadImage(str(second / file)))
        ).all()
        for file in files
    )
