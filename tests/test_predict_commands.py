"""Prediction of cases that lack files, through stock nnU-Net's commands and ours, on the trained tiny phantom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.integration

STAGE1, STAGE2, STAGE3 = (f"UniMRSegStage{number}Trainer" for number in (1, 2, 3))
CONTROL = "UniMRSegModalityDropoutTrainer"
NOTHING_ELSE = ("-npp", 0, "-nps", 0)


@pytest.fixture(scope="module")
def mixed(workspace, tmp_path_factory) -> Path:
    """One folder: a complete case, one with two files, one with one file, one with a constant instead of a file."""
    folder = tmp_path_factory.mktemp("mixed")
    source = workspace.raw / workspace.dataset_name / "imagesTs"
    names = sorted({path.name[:-12] for path in source.glob("*.nii.gz")})
    for name, channels in zip(names, ((0, 1, 2, 3), (0, 2), (3,)), strict=True):
        for channel in channels:
            shutil.copy(source / f"{name}_{channel:04d}.nii.gz", folder)
    for channel in (0, 1, 2):
        shutil.copy(source / f"{names[1]}_{channel:04d}.nii.gz", folder / f"with_constant_{channel:04d}.nii.gz")
    path = folder / "with_constant_0001.nii.gz"
    image = sitk.ReadImage(str(path)) * 0 + 37
    sitk.WriteImage(image, str(path))
    return folder


def predict(workspace, folder: Path, output: Path, *more: object, trainer: str = STAGE3, check: bool = True, own=False):
    command = ("unimrseg", "predict") if own else ("nnUNetv2_predict",)
    return workspace.run(
        *command, "-i", folder, "-o", output, "-d", workspace.dataset, "-c", workspace.configuration, "-f", 0,
        "-tr", trainer, "-p", workspace.plans, "-device", "cpu", *more, check=check,
    )  # fmt: skip


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


def same(one: Path, other: Path) -> bool:
    first, second = segmentations(one), segmentations(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def stock(workspace, mixed, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("stock")
    predict(workspace, mixed, output, *NOTHING_ELSE, "--save_probabilities")
    return output


def test_absent_file_equals_constant_file_bit_for_bit(workspace, mixed, stock):
    names = sorted({path.name[:-12] for path in mixed.glob("*.nii.gz")})
    absent, constant = (np.load(stock / f"{name}.npz")["probabilities"] for name in (names[1], "with_constant"))
    assert names[1] != "with_constant"
    assert np.array_equal(absent, constant)
    assert absent.std() > 0


def test_output_has_the_geometry_of_the_file_there_is(mixed, stock):
    for path in stock.glob("*.nii.gz"):
        given = sitk.ReadImage(str(next(mixed.glob(f"{path.name.removesuffix('.nii.gz')}_*"))))
        written = sitk.ReadImage(str(path))
        for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(written, read)() == getattr(given, read)()


def test_worker_processes_and_the_model_folder_command_give_the_same(workspace, mixed, stock, tmp_path):
    predict(workspace, mixed, tmp_path / "parallel", "-npp", 1, "-nps", 1)
    assert same(stock, tmp_path / "parallel")
    workspace.run(
        "nnUNetv2_predict_from_modelfolder", "-i", mixed, "-o", tmp_path / "folder",
        "-m", workspace.model_folder(STAGE3), "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1,
    )  # fmt: skip
    assert same(stock, tmp_path / "folder")


def test_own_command_gives_the_same_and_tells_the_modalities(workspace, mixed, stock, tmp_path):
    result = predict(workspace, mixed, tmp_path, *NOTHING_ELSE, own=True)
    assert same(stock, tmp_path)
    report = json.loads((tmp_path / "modalities.json").read_text())
    assert report["with_constant"] == {"available": ["FLAIR", "T1ce"], "missing": ["T1", "T2"]}
    assert sorted(len(entry["missing"]) for entry in report.values()) == [0, 2, 2, 3]
    assert "with_constant: available: FLAIR, T1ce, missing: T1, T2" in result.stdout


def test_modalities_restrict_the_files_used(workspace, mixed, stock, tmp_path):
    only = tmp_path / "only_complete"
    only.mkdir()
    name = sorted({path.name[:-12] for path in mixed.glob("*.nii.gz")})[0]
    two = tmp_path / "two_files"
    two.mkdir()
    for channel in range(4):
        shutil.copy(mixed / f"{name}_{channel:04d}.nii.gz", only)
        if channel in (1, 3):
            shutil.copy(mixed / f"{name}_{channel:04d}.nii.gz", two)
    predict(workspace, only, tmp_path / "out", *NOTHING_ELSE, "--modalities", "t2", "T1", own=True)
    predict(workspace, two, tmp_path / "expected", *NOTHING_ELSE)
    assert same(tmp_path / "out", tmp_path / "expected")


def test_continuing_keeps_what_is_done(workspace, mixed, stock, tmp_path):
    output = tmp_path / "continued"
    shutil.copytree(stock, output)
    done = sorted(output.glob("*.nii.gz"))
    done[0].unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in done[1:]}
    predict(workspace, mixed, output, *NOTHING_ELSE, "--continue_prediction")
    assert same(stock, output)
    assert {path.name: path.stat().st_mtime_ns for path in done[1:]} == stamps


def test_several_folds_and_no_mirroring(workspace, mixed, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(workspace.model_folder(STAGE3), model, ignore=shutil.ignore_patterns("fold_[1-9]*"))
    shutil.copytree(model / "fold_0", model / "fold_1")
    output = tmp_path / "out"
    workspace.run(
        "unimrseg", "predict", "-i", mixed, "-o", output, "-m", model, "-f", 0, 1, "-device", "cpu", "--disable_tta",
        *NOTHING_ELSE,
    )  # fmt: skip
    assert len(segmentations(output)) == 4


@pytest.mark.parametrize("trainer", [STAGE2, CONTROL])
def test_stage_2_and_the_control_predict_with_absent_files(workspace, mixed, tmp_path, trainer):
    predict(workspace, mixed, tmp_path, *NOTHING_ELSE, "--disable_tta", trainer=trainer)
    assert len(segmentations(tmp_path)) == 4


@pytest.mark.parametrize("own", [False, True])
def test_a_stage_1_model_is_refused_in_one_sentence(workspace, mixed, tmp_path, own):
    result = predict(workspace, mixed, tmp_path / "out", *NOTHING_ELSE, trainer=STAGE1, own=own, check=False)
    assert result.returncode != 0
    assert "stage-1 model: it reconstructs images and cannot segment" in result.stderr
    assert not segmentations(tmp_path / "out")


def test_all_problems_of_a_folder_are_listed_before_anything_is_written(workspace, mixed, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    good = next(mixed.glob("*_0002.nii.gz"))
    image = sitk.ReadImage(str(good))
    (folder / "truncated_0000.nii.gz").write_bytes(good.read_bytes()[:3000])
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    array[3, 3, 3] = np.nan
    nan = sitk.GetImageFromArray(array)
    nan.CopyInformation(image)
    sitk.WriteImage(nan, str(folder / "nan_0001.nii.gz"))
    shutil.copy(good, folder / "suffixless.nii.gz")
    shutil.copy(good, folder / "channel_0007.nii.gz")
    shutil.copy(good, folder / "shapes_0000.nii.gz")
    sitk.WriteImage(image[:-2], str(folder / "shapes_0001.nii.gz"))
    shutil.copy(good, folder / "moved_0000.nii.gz")
    moved = sitk.Image(image)
    moved.SetOrigin([position + 5 for position in image.GetOrigin()])
    sitk.WriteImage(moved, str(folder / "moved_0001.nii.gz"))
    sitk.WriteImage(image * 0, str(folder / "constant_0000.nii.gz"))
    result = predict(workspace, folder, tmp_path / "out", own=True, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "7 problems" in result.stderr
    for words in (
        "truncated_0000.nii.gz", "nan_0001.nii.gz", "suffixless.nii.gz: the name has no channel suffix",
        "channel_0007.nii.gz: there is no channel 0007", "shapes_0000.nii.gz and", "shapes_0001.nii.gz differ in shape",
        "moved_0001.nii.gz differ in origin or direction", "no modality is available",
    ):  # fmt: skip
        assert words in result.stderr, words
    assert not (tmp_path / "out").exists()
    stock = tmp_path / "one"
    stock.mkdir()
    shutil.copy(folder / "truncated_0000.nii.gz", stock)
    result = predict(workspace, stock, tmp_path / "out_stock", *NOTHING_ELSE, check=False)
    assert result.returncode != 0
    assert "truncated_0000.nii.gz" in result.stderr


def test_unknown_modality_and_corrupted_checkpoint(workspace, mixed, tmp_path):
    result = predict(workspace, mixed, tmp_path / "out", "--modalities", "T1c", own=True, check=False)
    assert result.returncode == 2
    assert "Did you mean 'T1ce'?" in result.stderr
    model = tmp_path / "model"
    shutil.copytree(workspace.model_folder(STAGE3), model, ignore=shutil.ignore_patterns("fold_[1-9]*"))
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    result = workspace.run(
        "unimrseg", "predict", "-i", mixed, "-o", tmp_path / "out", "-m", model, "-f", 0, "-device", "cpu", check=False
    )
    assert result.returncode == 2
    assert f"{checkpoint} cannot be read" in result.stderr
    assert not (tmp_path / "out").exists()


def test_arrays_by_modality_name(workspace, mixed, tmp_path):
    code = """
import sys, numpy as np, torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
predictor = UniMRSegPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], 0)
image, properties = SimpleITKIO().read_images(sys.argv[3:])
part = predictor.predict_single_npy_array(image[[2, 0]], dict(properties), available=("T1ce", "FLAIR"))
whole = predictor.predict_single_npy_array(image, dict(properties), available=("FLAIR", "T1ce"))
blanked = image.copy(); blanked[[1, 3]] = 0
assert np.array_equal(part, whole)
assert np.array_equal(part, predictor.predict_single_npy_array(blanked, dict(properties)))
np.save(sys.argv[2], part)
"""
    name = sorted({path.name[:-12] for path in mixed.glob("*.nii.gz")})[0]
    files = [mixed / f"{name}_{channel:04d}.nii.gz" for channel in range(4)]
    workspace.run("python", "-c", code, workspace.model_folder(STAGE3), tmp_path / "array.npy", *files)
    two = tmp_path / "two"
    two.mkdir()
    for channel in (0, 2):
        shutil.copy(files[channel], two)
    predict(workspace, two, tmp_path / "out", *NOTHING_ELSE)
    (expected,) = segmentations(tmp_path / "out").values()
    assert np.array_equal(np.load(tmp_path / "array.npy"), expected)
