"""`reconstruct` on files, with a network whose output is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tiny
from reconstructors import QUIET, reconstruct, reconstructions, write_model
from skimage.metrics import structural_similarity

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.reconstruction_metrics import missing_patterns

ROTATED = (0, -1, 0, 1, 0, 0, 0, 0, 1)
T1 = 2


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def box_of(margin: int) -> tuple[slice, ...]:
    return tuple(slice(margin, size - margin) for size in tiny.SHAPE)


def expected_from_t1(data: np.ndarray, factor: int, outside: float) -> np.ndarray:
    """T1 is not normalised and 0 outside a margin of 3 voxels, where the crop leaves `outside`."""
    expected = np.full(tiny.SHAPE, outside, dtype=np.float32)
    expected[box_of(3)] = factor * data[T1][box_of(3)]
    return expected


@pytest.fixture
def data():
    return tiny.image(1)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_missing_modalities_are_written_in_the_geometry_of_the_case(tmp_path, monkeypatch, data, reader):
    """The plans transpose the axes, the spacing is anisotropic, the image is rotated and cropped."""
    plans = tiny.plans(spacing=(2.0, 3.0, 2.5), reader=reader)
    if reader.endswith("Reorient"):  # in RAS the first two axes of the file are exchanged
        plans = tiny.plans(spacing=(2.5, 3.0, 2.0), reader=reader)
    model = write_model(tmp_path / "models", monkeypatch, plans=plans)
    given = tiny.write(tmp_path / "in" / f"case_0002{tiny.ENDING}", data[T1], direction=ROTATED)
    made = reconstructions(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    table = made.table
    assert list(table["modality"]) == ["CT", "PET", "T2"] and set(table["available"]) == {"T1"}
    assert table["L1"].isna().all() and made.failures == []
    reference = sitk.ReadImage(given)
    for factor, outside, path in zip((1, 2, 4), (-5, 0, 0), table["file"], strict=True):
        written = sitk.ReadImage(path)
        assert written.GetSize() == reference.GetSize() and written.GetPixelID() == sitk.sitkFloat32
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(written, name)(), getattr(reference, name)(), atol=1e-5), name
        found = sitk.GetArrayFromImage(written)
        assert np.allclose(found, expected_from_t1(data, factor, outside), rtol=1e-5, atol=1e-5)
        assert written.GetMetaData("descrip").startswith("SYNTHETIC (UniMRSeg), normalised units, from T1")


def test_what_was_resampled_is_brought_back(tmp_path, monkeypatch):
    grid = np.stack(np.meshgrid(*(np.linspace(0, 3, size) for size in tiny.SHAPE), indexing="ij"))
    smooth = (10 + np.sin(grid).sum(0)).astype(np.float32)
    model = write_model(tmp_path / "models", monkeypatch, plans=tiny.plans(spacing=(1.5, 2.5, 4.0)))
    tiny.write(tmp_path / "in" / f"case_0002{tiny.ENDING}", smooth)
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    error = read(table["file"][0]) - smooth
    assert np.abs(error[2:-2, 2:-2, 2:-2]).max() < 0.05


def test_complete_cases_are_scored_for_each_missing_pattern(tmp_path, monkeypatch, data):
    model = write_model(tmp_path / "models", monkeypatch)
    tiny.write_case(tmp_path / "in", "case", data)
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    patterns = missing_patterns(4)
    assert len(table) == sum(4 - sum(pattern) for pattern in patterns) and table["file"].isna().all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")) == [
        "case_reconstruction.png", "modalities.json", "scores.csv", "summary.json",
    ]  # fmt: skip
    from_t1 = table[table["available"] == "T1"].set_index("modality")
    box = box_of(1)  # of all images
    ct = (np.clip(data[0], -60, 120) - 40) / 20
    t2 = (data[3] - data[3].min()) / (data[3].max() - data[3].min())
    pet = data[1].copy()
    nonzero = (data != 0).any(0)
    pet[nonzero] = (pet[nonzero] - pet[nonzero].mean()) / pet[nonzero].std()
    truths = {"CT": (ct, 1, -5), "PET": (pet, 2, 0), "T2": (t2, 4, 0)}
    for name, (truth, factor, outside) in truths.items():
        made, truth = expected_from_t1(data, factor, outside)[box], truth[box]
        spread = float(truth.max() - truth.min())
        psnr = 10 * math.log10(spread**2 / np.square(made - truth).mean())
        similarity = structural_similarity(truth, made, win_size=7, data_range=spread, use_sample_covariance=False)
        assert from_t1.loc[name, "L1"] == pytest.approx(np.abs(made - truth).mean(), rel=1e-4)
        assert from_t1.loc[name, "PSNR"] == pytest.approx(psnr, abs=1e-3)
        assert from_t1.loc[name, "SSIM"] == pytest.approx(similarity, abs=1e-4)
    stored = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert list(stored.columns) == ["case", "available", "modality", "L1", "PSNR", "SSIM"] and len(stored) == len(table)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean"]["T1"]["PET"]["L1"] == pytest.approx(from_t1.loc["PET", "L1"])
    assert summary["missing_modalities_mean"]["SSIM"] == pytest.approx(table["SSIM"].mean())


def test_chosen_modalities_are_as_if_the_others_were_absent_but_for_the_scores(tmp_path, monkeypatch, data):
    model = write_model(tmp_path / "models", monkeypatch)
    tiny.write_case(tmp_path / "in", "case", data)
    tiny.write_case(tmp_path / "few", "case", data, (1, 2))
    chosen = reconstruct(tmp_path / "in", tmp_path / "a", model, (0,), modalities=("t1", "PET"), **QUIET)
    absent = reconstruct(tmp_path / "few", tmp_path / "b", model, (0,), **QUIET)
    every = reconstruct(tmp_path / "in", tmp_path / "c", model, (0,), **QUIET)
    unscored = reconstruct(tmp_path / "in", tmp_path / "d", model, (0,), modalities=(1, 2), scores=False, **QUIET)
    for one, other in zip(chosen["file"], absent["file"], strict=True):
        assert np.array_equal(read(one), read(other))
    scored = every[every["available"] == "PET+T1"]
    assert np.allclose(chosen[["L1", "PSNR", "SSIM"]], scored[["L1", "PSNR", "SSIM"]])
    assert absent["L1"].isna().all() and unscored["L1"].isna().all()
    assert not (tmp_path / "d" / "scores.csv").exists()
    assert reconstruct(tmp_path / "in", tmp_path / "e", model, (0,), scores=False, **QUIET).empty


def test_a_constant_file_counts_as_missing(tmp_path, monkeypatch, data):
    model = write_model(tmp_path / "models", monkeypatch)
    data[0] = 7
    tiny.write_case(tmp_path / "in", "case", data)
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    assert list(table["modality"]) == ["CT"] and table["L1"].isna().all()


def test_folds_are_averaged(tmp_path, data):
    model = write_model(tmp_path / "models", folds=("0", "1"))
    tiny.write_case(tmp_path / "in", "case", data, (0, 3))
    made = [
        np.stack([read(path) for path in reconstruct(tmp_path / "in", tmp_path / name, model, folds, **QUIET)["file"]])
        for name, folds in (("a", (0,)), ("b", (1,)), ("c", None))
    ]
    assert not np.allclose(made[0], made[1], atol=0.01)
    inside = (slice(None), *box_of(1))
    assert np.allclose(made[2][inside], ((made[0] + made[1]) / 2)[inside], atol=1e-4)


def test_parts_and_threads_give_the_same_as_one_call(tmp_path, data):
    model = write_model(tmp_path / "models")
    for name, channels in (("a", range(4)), ("b", (1,)), ("c", (0, 2))):
        tiny.write_case(tmp_path / "in", name, data, channels)
    threads = {**QUIET, "num_threads_preprocessing": 2, "num_threads_export": 2}
    whole = reconstruct(tmp_path / "in", tmp_path / "whole", model, (0,), **QUIET)
    parts = [
        reconstruct(tmp_path / "in", tmp_path / "parts", model, (0,), num_parts=2, part_id=part, **threads)
        for part in (1, 0)
    ]
    assert [set(part["case"]) for part in parts] == [{"b"}, {"a", "c"}]
    for name in ("scores.csv", "modalities.json", "summary.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    for path in whole["file"].dropna():
        assert np.array_equal(read(path), read(path.replace("whole", "parts")))


def test_nothing_that_is_there_is_overwritten_unless_asked(tmp_path, monkeypatch, data):
    model = write_model(tmp_path / "models", monkeypatch)
    tiny.write_case(tmp_path / "in", "a", data, (2,))
    arguments = (tmp_path / "in", tmp_path / "out", model, (0,))
    first = reconstruct(*arguments, **QUIET)
    with pytest.raises(UserError, match=r"a_0000\.nii\.gz is there already"):
        reconstruct(*arguments, **QUIET)
    tiny.write_case(tmp_path / "in", "b", data, (2, 3))
    before = (tmp_path / "out" / "a_0000.nii.gz").stat().st_mtime_ns
    assert set(reconstruct(*arguments, skip_done=True, **QUIET)["case"]) == {"b"}
    assert (tmp_path / "out" / "a_0000.nii.gz").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"made otherwise \(step_size differ"):
        reconstruct(*arguments, skip_done=True, step_size=1, **QUIET)
    assert len(reconstruct(*arguments, overwrite=True, step_size=1, **QUIET)) == len(first) + 2
    assert (tmp_path / "out" / "a_0000.nii.gz").stat().st_mtime_ns != before


def test_a_case_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, data):
    from nnunetv2_unimrseg.reconstruction import case_reconstructor

    model = write_model(tmp_path / "models", monkeypatch)
    for name in "abc":
        tiny.write_case(tmp_path / "in", name, data, (2,))
    write = case_reconstructor.write_image

    def full_disk(path, *arguments):
        if path.name == "b_0001.nii.gz":
            raise OSError(28, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(case_reconstructor, "write_image", full_disk)
    made = reconstructions(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    assert set(made.table["case"]) == {"a", "c"}
    (failure,) = made.failures
    assert failure["case"] == "b" and failure["subset"] == "T1" and "No space left" in failure["reason"]
    assert not (tmp_path / "out" / "b_reconstruction.png").exists()
    monkeypatch.setattr(case_reconstructor, "write_image", write)
    again = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), skip_done=True, **QUIET)
    assert set(again["case"]) == {"b"}
    monkeypatch.setattr(case_reconstructor, "write_image", full_disk)
    reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), overwrite=True, **QUIET)
    assert not (tmp_path / "out" / "b_reconstruction.png").exists()


def test_every_problem_of_the_input_is_told_before_anything_is_computed(tmp_path, monkeypatch, data):
    model = write_model(tmp_path / "models", monkeypatch)
    tiny.write_case(tmp_path / "in", "a", data, (2,))
    tiny.write_case(tmp_path / "in", "b", data[:, :-1], (0,))
    tiny.write_case(tmp_path / "in", "b", data, (1,))
    (tmp_path / "in" / "c_0003.nii.gz").write_bytes(b"")
    (tmp_path / "in" / "no_suffix.nii.gz").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    for problem in ("has 3 problems", "differ in shape", "c_0003", "no_suffix"):
        assert problem in str(caught.value)
    assert not (tmp_path / "out").exists()
