"""Predictions through other processes, and by several commands at once, are those of one process, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import trained
from conftest import BIN
from full_disk import check_whole
from test_predictor_files import SEQUENTIAL, make_predictor

from nnunetv2_unimrseg.inference.jobs import export_problem

ENDINGS = (".nii.gz", ".npz", ".pkl")


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> Path:
    """Four cases, each with another subset of its files."""
    folder = tmp_path_factory.mktemp("patients")
    for number, (name, channels) in enumerate((("a", range(4)), ("b", (0, 2)), ("c", (3,)), ("d", (1, 2, 3)))):
        tiny.write_case(folder, name, tiny.image(number), channels)
    return folder


@pytest.fixture(scope="module")
def alone(patients, tmp_path_factory) -> Path:
    """What one process predicts."""
    folder = tmp_path_factory.mktemp("alone")
    make_predictor().predict_from_files(patients, folder, save_probabilities=True, **SEQUENTIAL)
    return folder


def check_same(one: Path, other: Path, names: str = "abcd") -> None:
    for name in names:
        probabilities = [np.load(folder / f"{name}.npz")["probabilities"] for folder in (one, other)]
        assert probabilities[0].std() > 0 and np.array_equal(*probabilities), name
        for ending in (".nii.gz", ".pkl"):
            assert (one / f"{name}{ending}").read_bytes() == (other / f"{name}{ending}").read_bytes(), name


@pytest.mark.integration
@pytest.mark.parametrize("processes", [(1, 1), (0, 1), (1, 0), (2, 2)])
def test_other_processes_give_the_same_bit_for_bit(patients, alone, tmp_path, processes):
    counts = dict(zip(("num_processes_preprocessing", "num_processes_segmentation_export"), processes, strict=True))
    predictor, out = make_predictor(), tmp_path / "out"
    assert predictor.predict_from_files(patients, out, save_probabilities=True, **counts) == [None] * 4
    check_same(out, alone)
    assert {path.name for path in alone.iterdir()} == set(check_whole(out))


@pytest.mark.integration
def test_what_is_returned_through_other_processes_is_the_same(patients, alone):
    files = [sorted(map(str, patients.glob(f"{name}_*"))) for name in "bc"]
    counts = {"num_processes_preprocessing": 1, "num_processes_segmentation_export": 1}
    returned = make_predictor().predict_from_files(files, None, save_probabilities=True, **counts)
    for name, (segmentation, probabilities) in zip("bc", returned, strict=True):
        assert np.array_equal(probabilities, np.load(alone / f"{name}.npz")["probabilities"])
        assert segmentation.shape == tiny.SHAPE and len(np.unique(segmentation)) > 1


@pytest.mark.integration
def test_two_commands_at_once_do_every_case_once(patients, tmp_path):
    model, out = trained.write_model(tmp_path / "results"), tmp_path / "out"
    words = [
        BIN / "unimrseg", "predict", "-i", patients, "-o", out, "-m", model, "-f", 0, "-device", "cpu", "-npp", 0,
        "-nps", 0, "--save_probabilities", "--disable_progress_bar", "-num_parts", 2, "-part_id",
    ]  # fmt: skip
    commands = [
        subprocess.Popen(
            [*map(str, words), str(part)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        for part in range(2)
    ]
    told = [command.communicate(timeout=120) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], told
    for (said, _), names in zip(told, ("ac", "bd"), strict=True):
        assert [line.split()[1] for line in said.splitlines() if line.startswith("Predicting ")] == list(names)
    there = set(check_whole(out))
    assert {name for name in there if not name.endswith(("json", "html"))} == {
        f"{name}{ending}" for name in "abcd" for ending in ENDINGS
    }
    assert list(json.loads((out / "modalities.json").read_text())) == list("abcd")
    assert list(json.loads((out / "report.json").read_text())["cases"]) == list("abcd")
    predictor = make_predictor()
    assert predictor.predict_from_files(patients, out, save_probabilities=True, overwrite=False, **SEQUENTIAL) == []


def test_why_a_case_is_not_done_is_told_only_where_files_are_damaged(alone, tmp_path):
    predictor = make_predictor()
    for name in (f"a{ending}" for ending in ENDINGS):
        (tmp_path / name).write_bytes((alone / name).read_bytes())
    with_probabilities, without = (predictor._setting(save_probabilities=wanted) for wanted in (True, False))
    output = str(tmp_path / "a")
    assert export_problem(output, with_probabilities) is None
    (tmp_path / "a.npz").write_bytes((alone / "a.npz").read_bytes()[:-100])
    assert export_problem(output, with_probabilities).startswith(f"{output}.npz is not whole: ")
    assert export_problem(output, without) is None
    (tmp_path / "a.nii.gz").unlink()
    assert export_problem(output, with_probabilities) == "" == export_problem(output, without)
