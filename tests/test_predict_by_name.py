"""`unimrseg predict` on files that keep their names: --files and --pattern."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_predictor_files import model, read  # noqa: F401

from nnunetv2_unimrseg.cli.main import main

PATTERN = ("--pattern", "{case}/{case}-{modality}.nii.gz", "--names", "kt=PET", "t1w=T1")


@pytest.fixture
def patients(tmp_path, model) -> Path:  # noqa: F811
    """Patient a has everything, b a T1 image only; beside each lies a label."""
    for case, channels in (("a", range(4)), ("b", (2,))):
        data = tiny.image(seed=len(channels))
        for channel in channels:
            spelling = ("ct", "kt", "t1w", "T2")[channel]
            tiny.write(tmp_path / "patients" / case / f"{case}-{spelling}.nii.gz", data[channel])
            tiny.write(tmp_path / "expected" / f"{case}_{channel:04d}.nii.gz", data[channel])
        tiny.write(tmp_path / "patients" / case / f"{case}-seg.nii.gz", data[0])
    return tmp_path / "patients"


def run(patients: Path, *arguments: str, output: str = "out", code: int = 0) -> Path:
    (folder,) = patients.parent.glob("UniMRSeg*")
    common = ["-m", str(folder), "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]
    out = patients.parent / output
    assert main(["predict", "-o", str(out), *common, "--no_report", *arguments]) == code
    return out


def assert_same(patients: Path, out: Path, *names: tuple[str, str]) -> None:
    expected = run(patients, "-i", str(patients.parent / "expected"), output="stock_names")
    for name, case in names:
        assert np.array_equal(read(out / f"{name}.nii.gz"), read(expected / f"{case}.nii.gz"))


def test_a_tree_is_predicted_as_the_same_files_in_stock_names(patients, capsys):
    tiny.write(patients / "a" / "average.nii.gz", tiny.image()[0])
    out = run(patients, "-i", str(patients), *PATTERN, "--ignore", "*-seg.nii.gz")
    assert "1 image fits no pattern" in (printed := capsys.readouterr().out) and "- a/average.nii.gz" in printed
    assert_same(patients, out, ("a", "a"), ("b", "b"))
    assert json.loads((out / "modalities.json").read_text())["b"] == {
        "available": ["T1"],
        "missing": ["CT", "PET", "T2"],
    }
    chosen = run(
        patients, "-i", str(patients), *PATTERN, "--ignore", "*-seg.nii.gz", "--modalities", "T1", output="chosen"
    )
    assert json.loads((chosen / "modalities.json").read_text())["a"]["available"] == ["T1"]


def test_one_case_by_its_files(patients):
    files = [f"{name}={patients / 'a' / f'a-{spelling}.nii.gz'}" for name, spelling in
             (("T2", "T2"), ("pet", "kt"), ("0", "ct"), ("T1", "t1w"))]  # fmt: skip
    out = run(patients, "--files", *files)
    run(patients, "--files", f"T1={patients / 'b' / 'b-t1w.nii.gz'}", "--case", "other")
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a.nii.gz", "other.nii.gz"]
    assert_same(patients, out, ("a", "a"), ("other", "b"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Which scans?"),
        (("-i", "{in}", "--files", "T1=x"), "and not both"),
        (("-i", "{in}", "--names", "a=T1"), "need --pattern"),
        (("-i", "{in}", "--case", "x"), "--case names the case of --files"),
        (("--files", "T1=x", "--pattern", "{case}-{modality}.nii.gz"), "--files needs none of them"),
        (("--files", "T1=x", "--case", "a/b"), "a name that a file can have"),
        (("--files", "x.nii.gz"), "--files has 'x.nii.gz'"),
        (("--files", "T1=/x/a.nii.gz", "T1=/x/b.nii.gz"), "names 'T1' twice"),
        (("--files", "T11=/x/a.nii.gz"), "Did you mean 'T1'?"),
        (("--files", "T1=/x/a.nii.gz", "CT=/y/b.nii.gz"), "Give the case a name: --case"),
        (("--files", "T1=/x/a.nii.gz"), "there is no such file"),
        (("-i", "{in}", *PATTERN), "1 modality is unknown: 'seg' (2 files)"),
        (("-i", "{in}", "--pattern", "{case}/{modality}"), "must end with '.nii.gz'"),
    ],
)
def test_each_mistake_is_one_message(patients, capsys, arguments, words):
    out = run(patients, *(str(patients) if word == "{in}" else word for word in arguments), code=2)
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message and not out.exists()


def test_the_output_lies_apart_from_the_tree(patients, capsys):
    shutil.rmtree(patients.parent / "expected")
    run(patients, "-i", str(patients), *PATTERN, output="patients/out", code=2)
    assert "lies in the input folder" in capsys.readouterr().err
