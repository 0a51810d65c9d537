"""What preprocessing would make of a scan: finite, not constant, of a size that this machine can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.data import normalised
from nnunetv2_unimrseg.data.cases import check_cases
from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor, enable_incomplete_cases, preprocessing_problems
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities

LOWEST = np.finfo(np.float32).min
MODALITIES = Modalities(tiny.NAMES)


def managers(normaliser: str = "ZScoreNormalization", *, mask: bool = True):
    plans_manager = PlansManager(tiny.plans((normaliser, *tiny.NORMALISERS[1:]), use_mask=mask))
    return plans_manager, plans_manager.get_configuration("3d_fullres")


def problems(image: np.ndarray, *of_plans, spacing=tiny.SPACING, available=(True,) * 4) -> list[str]:
    return preprocessing_problems(image, {"spacing": spacing}, available, MODALITIES, *(of_plans or managers()))


def changed(change) -> np.ndarray:
    image = tiny.image()
    change(image[0])
    return image


def pad(channel: np.ndarray) -> None:
    channel[channel == 0] = LOWEST


def enlarge(channel: np.ndarray) -> None:
    channel *= 1e35


def make_binary(channel: np.ndarray) -> None:
    np.copyto(channel, (channel != 0) * 7)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pad, ("range from -3.40282e+38", "become NaN or infinite", "padded the image with the lowest float32 number")),
        (enlarge, ("become NaN or infinite", "damaged file, a wrong byte order or a wrong scaling factor")),
        (make_binary, ("range from 0 to 7", "become all the same", "Besides zeros it holds a single value")),
    ],
)
def test_what_overflows_or_becomes_constant_is_told_with_range_and_cause(change, words, mask):
    if change is make_binary and not mask:
        change = lambda channel: np.copyto(channel, 7) or channel.__setitem__((0, 0, 0), 0)  # noqa: E731
        image = changed(change)
        image[1:] = 0  # the crop is the channel's own box
        image[0, 0] = image[0, :, 0] = image[0, :, :, 0] = 0
        found = problems(image, *managers(mask=False), available=(True, False, False, False))
    else:
        found = problems(changed(change), *managers(mask=mask))
    assert len(found) == 1 and found[0].startswith("CT (channel 0) cannot be used: its values ")
    assert all(word in found[0] for word in words)


@pytest.mark.parametrize("normaliser", ["ZScoreNormalization", "CTNormalization", "NoNormalization"])
@pytest.mark.parametrize("mask", [True, False])
def test_ordinary_scans_pass_without_being_normalised(normaliser, mask, monkeypatch):
    monkeypatch.setattr(normalised, "crop_to_nonzero", lambda *_: pytest.fail("was cropped"))
    assert problems(tiny.image(), *managers(normaliser, mask=mask)) == []


def test_what_is_missing_is_not_looked_at():
    assert problems(changed(pad), available=(False, True, True, True)) == []


def test_ct_outside_the_range_of_the_training_images():
    (found,) = problems(changed(lambda channel: np.copyto(channel, channel + 5000)), *managers("CTNormalization"))
    assert "The training images lie between -60 and 120" in found and "not in Hounsfield units" in found


def test_colours_outside_of_bytes():
    (found,) = problems(changed(lambda channel: np.copyto(channel, channel * 10)), *managers("RGBTo01Normalization"))
    assert "they are refused" in found and "8-bit colour images" in found


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ((3.0, 0.0, 2.5), "all three must be positive numbers"),
        ((3.0, np.nan, 2.5), "all three must be positive numbers"),
        ((3.0, 2.0, 1e7), "more than this machine has"),
        ((3.0, 1e-4, 2.5), "nothing. Is the spacing in its header right, and in mm?"),
    ],
)
def test_a_spacing_that_cannot_be_right(spacing, words):
    (found,) = problems(tiny.image(), spacing=spacing)
    assert words in found


def test_prediction_refuses_such_a_case_before_anything_is_computed(tmp_path):
    image = changed(pad)
    files = tiny.write_case(tmp_path, "p", image, (0, 2))
    reader = managers()[0].image_reader_writer_class()
    with pytest.raises(UserError) as caught:
        check_cases([files], reader, MODALITIES, tiny.ENDING, plans=managers(), show_progress=False)
    assert f"case 'p': {files[0]}: CT (channel 0) cannot be used" in str(caught.value)


def test_stock_prediction_refuses_it_too_with_the_files_named(tmp_path):
    files = tiny.write_case(tmp_path, "p", changed(enlarge), (0, 2))
    plans_manager, configuration = managers()
    enable_incomplete_cases(configuration)
    with pytest.raises(UserError) as caught:
        UniMRSegPreprocessor(verbose=False).run_case(files, None, plans_manager, configuration, tiny.dataset_json())
    assert f"Case 'p' ({', '.join(files)})" in str(caught.value) and "CT (channel 0)" in str(caught.value)
    assert Path(files[0]).exists()
