"""The output folder of `reconstruct`: interrupted runs, what it must not be, files that two parts write."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from reconstructors import QUIET, reconstruct, write_model

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.reconstruction import reconstruct as module
from nnunetv2_unimrseg.reconstruction.reconstruction_folder import add_scores, start_or_continue

ROW = {"case": "a", "available": "T1", "modality": "PET", "L1": 0.1, "PSNR": 20.0, "SSIM": 0.5}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Two cases that lack all but T1, and a model."""
    for name in "ab":
        tiny.write_case(tmp_path / "in", name, tiny.image(1), (2,))
    return tmp_path / "in", tmp_path / "out", write_model(tmp_path / "models", monkeypatch), (0,)


def interrupted_at(case: str, arguments: tuple, monkeypatch, **changes) -> None:
    """Reconstruct, and end as by a kill when the images of a case are written and its picture is not."""
    write_case_results = module.write_case_results

    def killed(current, *rest):
        if current.name == case:
            raise KeyboardInterrupt
        return write_case_results(current, *rest)

    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        patches.setattr(module, "write_case_results", killed)
        reconstruct(*arguments, **QUIET, **changes)


def image_of(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_an_interrupted_run_continues_with_the_case_that_was_not_finished(arguments, monkeypatch):
    output = arguments[1]
    interrupted_at("b", arguments, monkeypatch)
    assert (output / "b_0003.nii.gz").is_file() and not (output / "b_reconstruction.png").exists()
    finished, left = ((output / f"{case}_0000.nii.gz").stat().st_mtime_ns for case in "ab")
    with pytest.raises(UserError, match=r"made otherwise \(step_size differ"):
        reconstruct(*arguments, skip_done=True, step_size=1, **QUIET)
    assert (output / "b_0000.nii.gz").stat().st_mtime_ns == left
    assert set(reconstruct(*arguments, skip_done=True, **QUIET)["case"]) == {"b"}
    assert (output / "b_0000.nii.gz").stat().st_mtime_ns != left
    assert (output / "a_0000.nii.gz").stat().st_mtime_ns == finished
    assert (output / "b_reconstruction.png").is_file()


def test_what_an_interrupted_overwriting_did_not_reach_is_no_longer_done(arguments, tmp_path, monkeypatch):
    output = arguments[1]
    raw = tmp_path / "raw" / "Dataset998_Tiny"
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    tiny.write_case(raw / "imagesTr", "x", tiny.image(2))
    (raw / "dataset.json").write_text(json.dumps({**tiny.dataset_json(), "numTraining": 1}))
    reconstruct(*arguments, **QUIET)
    before = image_of(output / "b_0003.nii.gz")
    interrupted_at("a", arguments, monkeypatch, overwrite=True, intensities=True)
    assert np.array_equal(image_of(output / "b_0003.nii.gz"), before)
    table = reconstruct(*arguments, skip_done=True, intensities=True, **QUIET)
    assert set(table["case"]) == {"a", "b"}
    assert np.array_equal(image_of(output / "b_0003.nii.gz"), image_of(output / "a_0003.nii.gz"))
    assert not np.allclose(image_of(output / "b_0003.nii.gz"), before)


@pytest.mark.parametrize("how", ["itself", "link to the folder", "link to the file"])
def test_a_folder_that_holds_inputs_takes_no_reconstructions(arguments, tmp_path, how):
    images, _, model, folds = arguments
    output = {"itself": images, "link to the folder": tmp_path / "link", "link to the file": images}[how]
    if how == "link to the folder":
        output.symlink_to(images)
    if how == "link to the file":
        images = tmp_path / "links"
        images.mkdir()
        (images / "a_0002.nii.gz").symlink_to(output / "a_0002.nii.gz")
    before = sorted(arguments[0].iterdir())
    for wish in ({}, {"overwrite": True}, {"skip_done": True}):
        with pytest.raises(UserError) as caught:
            reconstruct(images, output, model, folds, **wish, **QUIET)
        held = "holds the input file" if how == "link to the file" else f"is the input folder {images}"
        assert held in str(caught.value) and "taken for input" in str(caught.value)
        assert "a_0002.nii.gz" in str(caught.value) or how != "link to the file"
    assert sorted(arguments[0].iterdir()) == before


def test_neither_does_a_folder_with_other_scans(arguments):
    output = arguments[1]
    tiny.write_case(output, "a", tiny.image(5), (0,))
    before = (output / "a_0000.nii.gz").read_bytes()
    for wish in ({"overwrite": True}, {"skip_done": True}):
        with pytest.raises(UserError, match="no reconstructions, such as a_0000"):
            reconstruct(*arguments, **wish, **QUIET)
    assert [path.name for path in output.iterdir()] == ["a_0000.nii.gz"]
    assert (output / "a_0000.nii.gz").read_bytes() == before


def test_a_summary_of_something_else_is_not_replaced_unless_asked(arguments):
    output = arguments[1]
    output.mkdir()
    (output / "summary.json").write_text('{"foreground_mean": {"Dice": 0.9}}')
    with pytest.raises(UserError, match=r"holds summary\.json of something else"):
        reconstruct(*arguments, **QUIET)
    assert "Dice" in (output / "summary.json").read_text()
    reconstruct(*arguments, overwrite=True, **QUIET)
    assert "settings" in json.loads((output / "summary.json").read_text())


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_path_that_is_no_folder_is_one_error(arguments, tmp_path, below):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"file is a file, no folder\. Give another output folder \(-o\)"):
        reconstruct(arguments[0], tmp_path / "file" / below, *arguments[2:], **QUIET)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_cannot_be_written_to_is_one_error(arguments, tmp_path, monkeypatch):
    def no_permission(dir):
        raise PermissionError(13, f"Permission denied, not even in {dir}")

    with monkeypatch.context() as patches, pytest.raises(UserError, match=f"no permission in {tmp_path}"):
        patches.setattr(tempfile, "TemporaryFile", no_permission)
        reconstruct(*arguments, **QUIET)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError, match=f"cannot be made: {tmp_path} lies on a read-only file system"):
        reconstruct(*arguments, **QUIET)


def test_parts_that_finish_together_write_scores_beside_each_other(tmp_path, monkeypatch):
    start_or_continue(tmp_path, {}, overwrite=False)
    replace, temporary = os.replace, {}

    def recorded(source, target):
        temporary[Path(target).name] = Path(source).name
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    add_scores(tmp_path, [ROW], {})
    assert set(temporary) == {"scores.csv", "summary.json"}
    assert all(str(os.getpid()) in name for name in temporary.values())
    assert (tmp_path / "scores.csv").read_text() == "case,available,modality,L1,PSNR,SSIM\na,T1,PET,0.1,20.0,0.5\n"


def test_nothing_is_said_of_options_that_were_not_given(arguments, capsys):
    reconstruct(*arguments, **QUIET)
    assert "perform_everything_on_device" not in capsys.readouterr().out
