"""From normalised units back to raw intensities."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from reconstructors import QUIET, SAME_SPACING, reconstruct, write_model

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.reconstruction import training_intensities as module
from nnunetv2_unimrseg.reconstruction.normalisers import INVERTIBLE, Normaliser
from nnunetv2_unimrseg.reconstruction.training_intensities import CACHE_NAME, training_intensities

FOREGROUND = {"mean": 40.0, "std": 20.0, "percentile_00_5": -60.0, "percentile_99_5": 120.0}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_nnunets_normalisers_are_inverted(name, masked):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 119, (8, 9, 10)).astype(np.float32)
    image[:3] = 0
    outside = np.where(image == 0, -1, 0)
    normaliser = Normaliser(name, masked, FOREGROUND)
    normalised = getattr(schemes, name)(masked, FOREGROUND).run(image.copy(), outside)
    counted = image[outside >= 0] if masked else image
    measured = {"mean": counted.mean(), "std": counted.std(), "minimum": image.min(), "maximum": image.max()}
    assert np.allclose(normaliser.invert(normalised, outside >= 0, measured), image, atol=1e-3)
    if normaliser.outside is not None and name != "CTNormalization":
        assert normaliser.outside == pytest.approx(normalised[0, 0, 0], abs=1e-6)


def test_what_the_clip_range_of_ct_cut_off_stays_at_its_ends():
    image = np.array([-1000.0, -60.0, 0.0, 120.0, 3000.0], dtype=np.float32)
    normalised = schemes.CTNormalization(False, FOREGROUND).run(image.copy())
    normaliser = Normaliser("CTNormalization", False, FOREGROUND)
    assert np.allclose(normaliser.invert(normalised), [-60, -60, 0, 120, 120], atol=1e-4)
    assert np.allclose(normaliser.invert(np.array([-99.0, 99.0])), [-60, 120])
    assert normaliser.outside == pytest.approx(normalised[0])


def write_training_data(raw, *, num_cases: int = 3) -> list[np.ndarray]:
    folder = raw / "Dataset998_Tiny"
    images = []
    for number in range(num_cases):
        images.append((number + 1) * tiny.image(number))
        images[-1][:, :6, :6, :6] = 0  # inside the crop, outside the mask
        tiny.write_case(folder / "imagesTr", f"case{number}", images[-1])
    description = {**tiny.dataset_json(), "numTraining": num_cases}
    (folder / "dataset.json").write_text(json.dumps(description))
    return images


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


def measured(folder, **changes) -> list[dict]:
    manager = PlansManager(tiny.plans(**changes))
    configuration = manager.get_configuration("3d_fullres")
    return training_intensities(folder, manager, configuration, Modalities(tiny.NAMES), show_progress=False)


@pytest.mark.parametrize("use_mask", [True, False])
def test_training_intensities_are_averages_over_cases(tmp_path, raw, use_mask):
    images = write_training_data(raw)
    found = measured(tmp_path, use_mask=use_mask)
    means, stds, maxima = [], [], []
    for image in images:
        cropped, outside, _ = crop_to_nonzero(image)
        counted = cropped[1][outside[0] >= 0] if use_mask else cropped[1]
        means.append(counted.mean())
        stds.append(counted.std())
        maxima.append(cropped[1].max())
    assert found[1]["mean"] == pytest.approx(np.mean(means), rel=1e-5)
    assert found[1]["std"] == pytest.approx(np.mean(stds), rel=1e-5)
    assert found[1]["maximum"] == pytest.approx(np.mean(maxima))
    assert json.loads((tmp_path / CACHE_NAME).read_text())["num_cases"] == 3


def test_what_was_measured_is_kept_until_the_images_or_the_plans_change(tmp_path, raw, monkeypatch):
    write_training_data(raw)
    first = measured(tmp_path)
    counted = []
    measure_case = module._measure_case
    monkeypatch.setattr(module, "_measure_case", lambda *arguments: counted.append(1) or measure_case(*arguments))
    assert measured(tmp_path) == first and not counted
    assert measured(tmp_path, use_mask=False) != first and len(counted) == 3
    measured(tmp_path)
    file = raw / "Dataset998_Tiny" / "imagesTr" / "case0_0001.nii.gz"
    tiny.write(file, 5 * tiny.image(9)[1])
    assert measured(tmp_path)[1]["mean"] != first[1]["mean"] and len(counted) == 9
    monkeypatch.delenv("nnUNet_raw")
    assert measured(tmp_path)[1]["mean"] != first[1]["mean"] and len(counted) == 9


def test_without_training_images_the_error_says_what_to_do(tmp_path, raw, monkeypatch):
    with pytest.raises(UserError, match=r"there is no .*Dataset998_Tiny"):
        measured(tmp_path)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        measured(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    write_training_data(raw)
    os.unlink(raw / "Dataset998_Tiny" / "imagesTr" / "case1_0000.nii.gz")
    with pytest.raises(UserError, match=r"case1_0001\.nii\.gz, .* do not give the 4 channels of one case"):
        measured(tmp_path)
    assert not (tmp_path / CACHE_NAME).exists()


def test_files_that_the_dataset_lists_and_does_not_have_are_told_before_measuring(tmp_path, raw):
    write_training_data(raw)
    path = raw / "Dataset998_Tiny" / "dataset.json"
    files = {case: [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in range(4)] for case in ("case0", "gone")}
    listed = {case: {"images": images, "label": f"labelsTr/{case}.nii.gz"} for case, images in files.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": listed}))
    with pytest.raises(UserError, match=r"2 training cases, of which 1 lack images \(gone\)"):
        measured(tmp_path)


@pytest.mark.parametrize("damage", ["cut off", "NaN"])
def test_a_training_image_that_cannot_be_used_is_named(tmp_path, raw, damage):
    images = write_training_data(raw)
    file = raw / "Dataset998_Tiny" / "imagesTr" / "case1_0002.nii.gz"
    if damage == "NaN":
        images[1][2, 7, 7, 7] = np.nan
        tiny.write(file, images[1][2])
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"case1_0002\.nii\.gz (cannot be read|holds NaN)"):
        measured(tmp_path, reader="NibabelIO")
    assert not (tmp_path / CACHE_NAME).exists()


def test_training_images_of_several_channels_a_file_are_measured(tmp_path, raw):
    folder = raw / "Dataset998_Tiny"
    (folder / "imagesTr").mkdir(parents=True)
    pictures = [np.random.default_rng(seed).integers(1, 200, (20, 24, 3), np.uint8) for seed in range(2)]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / "imagesTr" / f"case{number}_0000.png")
    names = ("red", "green", "blue")
    (folder / "dataset.json").write_text(json.dumps({**tiny.dataset_json(names, ".png"), "numTraining": 2}))
    manager = PlansManager(tiny.plans(["ZScoreNormalization"] * 3, reader="NaturalImage2DIO", use_mask=False))
    configuration = manager.get_configuration("3d_fullres")
    found = training_intensities(tmp_path, manager, configuration, Modalities(names), show_progress=False)
    for channel, entry in enumerate(found):
        assert entry["mean"] == pytest.approx(np.mean([picture[..., channel].mean() for picture in pictures]), rel=1e-5)
        assert entry["maximum"] == np.mean([picture[..., channel].max() for picture in pictures])


def test_files_hold_the_training_sets_intensities(tmp_path, raw, monkeypatch):
    write_training_data(raw)
    model = write_model(tmp_path / "models", monkeypatch)
    tiny.write_case(tmp_path / "in", "case", tiny.image(1), (1,))
    units, intensities = (
        reconstruct(tmp_path / "in", tmp_path / str(wish), model, (0,), intensities=wish, **QUIET)
        for wish in (False, True)
    )
    average = measured(model)
    for channel, one, other in zip((0, 2, 3), units["file"], intensities["file"], strict=True):
        normalised, written = (sitk.ReadImage(path) for path in (one, other))
        assert written.GetMetaData("descrip") == "SYNTHETIC (UniMRSeg), training-set intensities, from PET"
        normalised = sitk.GetArrayFromImage(normalised)
        low, high = average[channel]["minimum"], average[channel]["maximum"]
        expected = {
            0: np.clip(20 * normalised + 40, -60, 120),
            2: normalised,
            3: np.clip(normalised, 0, 1) * (high - low) + low,
        }[channel]
        assert np.allclose(sitk.GetArrayFromImage(written), expected, atol=1e-3)
    assert "settings" in json.loads((tmp_path / "True" / "summary.json").read_text())


def test_outside_the_mask_of_a_masked_z_score_is_nothing(tmp_path, raw, monkeypatch):
    write_training_data(raw)
    model = write_model(tmp_path / "models", monkeypatch)
    image = tiny.image(1)
    tiny.write_case(tmp_path / "in", "case", image, (2,))
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), intensities=True, **QUIET)
    written = sitk.GetArrayFromImage(sitk.ReadImage(table.set_index("modality").loc["PET", "file"]))
    average = measured(model)[1]
    inside = image[2] != 0
    expected = np.where(inside, 2 * image[2] * average["std"] + average["mean"], 0)
    assert np.allclose(written, expected, rtol=1e-5)


def test_a_normaliser_that_is_not_known_is_an_error_only_where_it_is_needed(tmp_path, monkeypatch):
    plans = tiny.plans(spacing=SAME_SPACING)
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["MyOwn", *tiny.NORMALISERS[1:]]
    model = write_model(tmp_path / "models", monkeypatch, plans=plans)
    tiny.write_case(tmp_path / "in", "case", tiny.image(1), (1, 2, 3))
    with pytest.raises(UserError, match=r"CT \(MyOwn\).*Leave out --intensities"):
        reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), intensities=True, **QUIET)
    assert not (tmp_path / "out").exists()
