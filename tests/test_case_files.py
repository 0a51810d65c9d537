"""Cases that are given by the names of their modalities, whatever their files are called."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from test_predictor_files import SEQUENTIAL, error_of, make_predictor

from nnunetv2_unimrseg.data.case_files import CaseFiles, common_name, name_channels
from nnunetv2_unimrseg.data.cases import find_cases
from nnunetv2_unimrseg.data.reading import read_case
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.reconstruction.planning import plan_cases

MODALITIES = Modalities(tiny.NAMES)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["in/BraTS-1-t1n.nii.gz", "in/BraTS-1-t1c.nii.gz"], "BraTS-1"),
        (["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"], "sub-01"),
        (["sub-01_T1.nii.gz", "sub-01_T1_ce.nii.gz"], "sub-01"),
        (["T1/patient-7.nii.gz", "FLAIR/patient-7.nii.gz"], "patient-7"),
        (["a/patient_0000.nii.gz", "b/patient_0002.nii.gz"], "patient"),
        (["patient-7-T1.nii.gz"], "patient-7-T1"),
        (["patient_0002.nii.gz"], "patient"),
        (["scan.NII", "scan.mha"], "scan"),
        (["/data/patient-7/T1.nii.gz", "/data/patient-7/FLAIR.nii.gz"], "patient-7"),
        (["/data/patient-7/T1.nii.gz", "/data/patient-7/T1_ce.nii.gz"], "patient-7"),
        (["a/T1.nii.gz", "b/FLAIR.nii.gz"], ""),
        ([], ""),
    ],
)
def test_the_name_that_files_have_in_common(files, name):
    assert common_name(files, tiny.ENDING) == name


def test_a_case_keeps_its_name_and_channels():
    case, problems = name_channels("a", {"t2": "x", "0": "y", "PET": "z"}, MODALITIES, tiny.ENDING)
    assert not problems and case == ["y", "z", "x"] and case.channels == [0, 1, 3]
    copy = pickle.loads(pickle.dumps(case))
    assert copy == case and copy.channels == case.channels and copy.name == "a"
    restricted = case.restrict(MODALITIES.subset(["T1", "T2"]))
    assert restricted == ["x"] and restricted.channels == [3] and restricted.name == "a"


def test_every_problem_of_a_case_is_listed():
    _, problems = name_channels("a/b", {"T1": "x", "2": "y", "PTE": "z"}, MODALITIES, tiny.ENDING)
    assert all(
        text in problem for text, problem in zip(["name of a file", "two files", "'PET'?"], problems, strict=True)
    )
    assert "no file" in name_channels("a", {}, MODALITIES, tiny.ENDING)[1][0]


def test_files_by_modality_are_found_and_restricted():
    source = {"a": {"T1": "x", "CT": "y"}, "b": {"T2": "z"}}
    assert find_cases(source, MODALITIES, tiny.ENDING, None) == ([["y", "x"], ["z"]], [])
    cases, problems = find_cases(source, MODALITIES, tiny.ENDING, MODALITIES.subset(["T1"]))
    assert cases == [["x"]] and isinstance(cases[0], CaseFiles)
    assert len(problems) == 1 and "case 'b': none of the modalities asked for (T1)" in problems[0]
    assert 'Give {"CASE": {"MODALITY": "FILE"}}' in error_of(find_cases, {"T1": "x"}, MODALITIES, tiny.ENDING, None)


# --- with a network


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


@pytest.fixture
def written(tmp_path):
    """The same case twice: in nnU-Net's names, and in names that would say something else."""
    data = tiny.image(1)
    files = tiny.write_case(tmp_path / "in", "a", data)
    misleading = {
        name: tiny.write(tmp_path / "named" / f"x_{3 - channel:04d}{tiny.ENDING}", data[channel])
        for channel, name in enumerate(tiny.NAMES)
    }
    return files, misleading


@pytest.mark.parametrize("names", [("T2", "CT"), ("T1",), tuple(reversed(tiny.NAMES))])
def test_names_decide_and_not_the_files(predictor, written, names):
    files, misleading = written
    given = {name: misleading[name] for name in names}
    channels = [channel for channel, name in enumerate(tiny.NAMES) if name in names]
    expected, found = (
        predictor.predict_from_files(source, None, save_probabilities=True, **SEQUENTIAL)[0][1]
        for source in ([[files[channel] for channel in channels]], [given])
    )
    assert np.array_equal(found, expected)
    chosen = predictor.predict_from_files([misleading], None, modalities=names, save_probabilities=True, **SEQUENTIAL)
    assert np.array_equal(chosen[0][1], expected)


def test_the_name_of_the_case_is_that_of_the_output(predictor, written, tmp_path):
    _, misleading = written
    predictor.predict_from_files({"patient 7": misleading}, tmp_path / "out", **SEQUENTIAL)
    predictor.predict_from_files([{"T1": misleading["T1"], "CT": misleading["CT"]}], tmp_path / "out", **SEQUENTIAL)
    report = json.loads((tmp_path / "out" / "modalities.json").read_text())
    assert list(report) == ["patient 7", "x"] and report["x"]["available"] == ["CT", "T1"]
    assert sitk.ReadImage(str(tmp_path / "out" / "patient 7.nii.gz")).GetSize() == tiny.SHAPE[::-1]
    assert (tmp_path / "out" / "x.nii.gz").is_file()


def test_named_files_are_reconstructed_from(written, tmp_path):
    _, misleading = written
    (case,) = plan_cases(
        {"patient": {"T2": misleading["T2"], "CT": misleading["CT"]}}, tmp_path / "out", MODALITIES, SimpleITKIO(),
        tiny.ENDING, chosen=MODALITIES.subset(["T2"]), scores=True, overwrite=False, skip_done=False, part=slice(None),
        show_progress=False,
    )  # fmt: skip
    assert (case.name, case.files, case.available) == ("patient", [misleading["T2"]], (False, False, False, True))
    assert case.all_files == [misleading["CT"], misleading["T2"]]
    read, problems = read_case(case.files, SimpleITKIO(), MODALITIES, tiny.ENDING)
    assert not problems and read.files == {3: misleading["T2"]}


def test_what_is_wrong_with_named_files_is_one_error(predictor, written, tmp_path):
    _, misleading = written
    whole = tmp_path / "whole.nii.gz"
    images = [sitk.ReadImage(misleading[name]) for name in tiny.NAMES]
    sitk.WriteImage(sitk.JoinSeries(images), str(whole))
    source = {"a": {"T1": tmp_path / "absent.nii.gz"}, "b": {"CT": whole}, "c": {"T3": misleading["T1"]}}
    message = error_of(predictor.predict_from_files, source, tmp_path / "out", **SEQUENTIAL)
    assert "3 problems" in message and "there is no such file" in message and "Unknown modality 'T3'" in message
    assert "holds 4 channels" in message
    apart = [{"T1": tiny.write(tmp_path / "1" / "T1.nii.gz", tiny.image()[0]), "CT": misleading["CT"]}]
    message = error_of(predictor.predict_from_files, apart, tmp_path / "out", **SEQUENTIAL)
    assert "nothing in common" in message and "--case" in message
    assert "would be taken for input" in error_of(
        predictor.predict_from_files, {"a": misleading}, tmp_path / "named", **SEQUENTIAL
    )
    assert not (tmp_path / "out").exists()
