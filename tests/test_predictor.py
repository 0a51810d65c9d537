"""UniMRSegPredictor: signatures, arrays by modality name, reports."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from test_predictor_files import make_predictor

from nnunetv2_unimrseg.data.cases import write_availability
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.arrays import scatter
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.modalities import Modalities

BRAIN = Modalities(("FLAIR", "T1", "T1ce", "T2"))
IMAGE = np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3) + 1


OVERRIDDEN = [
    name
    for name, member in vars(UniMRSegPredictor).items()
    if inspect.isfunction(member) and hasattr(nnUNetPredictor, name)
]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_signatures_are_nnunets_with_more_keywords_only(name):
    ours = inspect.signature(getattr(UniMRSegPredictor, name)).parameters.values()
    stock = inspect.signature(getattr(nnUNetPredictor, name)).parameters.values()
    shared = [parameter for parameter in ours if parameter.kind is not parameter.KEYWORD_ONLY]
    assert [parameter.name for parameter in shared] == [parameter.name for parameter in stock]
    for one, other in zip(shared, stock, strict=True):
        assert one.default == other.default, one.name


def test_scatter_puts_named_channels_into_their_places():
    whole = scatter(IMAGE, BRAIN, ("T2", "flair"))
    assert np.array_equal(whole[[0, 3]], IMAGE[[0, 3]])
    assert not whole[[1, 2]].any()
    assert np.array_equal(scatter(IMAGE[[3, 0]], BRAIN, ("T2", "FLAIR")), whole)
    assert scatter(IMAGE, BRAIN, None) is IMAGE


@pytest.mark.parametrize(
    ("image", "names"), [(IMAGE[:3], ("T1", "T2")), (IMAGE, ("T1", "T1")), (IMAGE, ("T9",)), (IMAGE, ())]
)
def test_scatter_refuses_what_is_not_clear(image, names):
    with pytest.raises(UserError):
        scatter(image, BRAIN, names)


def test_reports_of_earlier_cases_are_kept(tmp_path):
    write_availability(tmp_path, {"b": {"available": ["T1"], "missing": ["T2"]}})
    write_availability(tmp_path, {"a": {"available": ["T2"], "missing": ["T1"]}})
    assert list(json.loads((tmp_path / "modalities.json").read_text())) == ["a", "b"]


def test_absent_models_are_one_error(tmp_path):
    predictor = UniMRSegPredictor(device=torch.device("cpu"))
    with pytest.raises(UserError, match="There is no trained model"):
        predictor.initialize_from_trained_model_folder(str(tmp_path / "none"), (0,))
    with pytest.raises(UserError, match="No model is loaded"):
        predictor.modalities  # noqa: B018 (the property raises)


# --- what the Python API is given ---------------------------------------------------------------------------------

SPACING = {"spacing": list(tiny.SPACING)}


@pytest.fixture(scope="module")
def predictor() -> UniMRSegPredictor:
    return make_predictor()


def error_of(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ({}, "found none in {}"),
        ({"shape": (1, 2)}, "found none in {'shape': (1, 2)}"),
        (None, "found none in None"),
        ({"spacing": None}, "found none in {'spacing': None}"),
        ({"spacing": [3.0, 2.0]}, "found [3.0, 2.0]"),
        ({"spacing": [1, 1, 1, 1]}, "found [1, 1, 1, 1]"),
        ({"spacing": 2.0}, "found 2.0"),
        ({"spacing": "2"}, "found '2'"),
        ({"spacing": ["1", "two", "3"]}, "found ['1', 'two', '3']"),
        ({"spacing": [1.0, float("nan"), 1.0]}, "found [1.0, nan, 1.0]"),
        ({"spacing": [1.0, float("inf"), 1.0]}, "found [1.0, inf, 1.0]"),
        ({"spacing": [1.0, 0.0, 1.0]}, "found [1.0, 0.0, 1.0]"),
        ({"spacing": [1.0, -2.0, 1.0]}, "found [1.0, -2.0, 1.0]"),
    ],
)
def test_properties_without_a_usable_spacing_are_one_error(predictor, properties, found):
    image = tiny.image()
    message = error_of(predictor.predict_single_npy_array, image, properties)
    assert message.startswith("The properties of an image must hold its 'spacing': three positive numbers of mm")
    assert found in message
    if properties is not None:  # which there means no properties
        several = [SPACING, properties]
        assert error_of(predictor.predict_from_list_of_npy_arrays, [image, image], None, several, None) == message


def test_a_spacing_may_be_any_three_numbers(predictor):
    image = tiny.image()
    expected = predictor.predict_single_npy_array(image, dict(SPACING))
    for spacing in (tuple(tiny.SPACING), np.array(tiny.SPACING)):
        assert np.array_equal(predictor.predict_single_npy_array(image, {"spacing": spacing}), expected)


@pytest.mark.parametrize(
    ("images", "properties", "outputs", "words"),
    [
        (2, 1, None, "There are 2 images, 1 properties and 0 output files"),
        (1, 2, None, "There are 1 images, 2 properties and 0 output files"),
        (2, 0, None, "There are 2 images, 0 properties and 0 output files"),
        (2, 2, ["x"], "There are 2 images, 2 properties and 1 output files"),
        (2, 2, "x", "There are 2 images, 2 properties and 1 output files"),
        (1, 1, ["x", "y"], "There are 1 images, 1 properties and 2 output files"),
    ],
)
def test_another_number_of_properties_or_outputs_than_images_is_one_error(
    predictor, tmp_path, images, properties, outputs, words
):
    if isinstance(outputs, list):
        outputs = [str(tmp_path / name) for name in outputs]
    message = error_of(
        predictor.predict_from_list_of_npy_arrays, [tiny.image()] * images, None, [dict(SPACING)] * properties, outputs
    )
    assert message.startswith(words) and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_flat_list_of_paths_and_another_number_of_outputs_are_one_error_each(predictor, tmp_path):
    files = tiny.write_case(tmp_path / "in", "a", tiny.image())
    message = error_of(predictor.predict_from_files, files, tmp_path / "out")
    assert "it holds 4 paths itself, such as" in message and f'Give [["{files[0]}"' in message
    message = error_of(predictor.predict_from_files, [files], [str(tmp_path / name) for name in "xy"])
    assert message == "There are 1 cases and 2 output files; give one for each case."
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("reader", "key"), [("SimpleITKIO", "sitk_stuff"), ("NibabelIOWithReorient", "nibabel_stuff")])
def test_what_the_writer_needs_must_be_in_the_properties(tmp_path, reader, key):
    predictor = make_predictor()
    predictor.plans_manager.plans["image_reader_writer"] = reader
    image, output = tiny.image(), str(tmp_path / "a")
    message = error_of(predictor.predict_single_npy_array, image, dict(SPACING), None, output)
    assert message.startswith(f"To write a segmentation, {reader} needs '{key}' in the properties")
    assert "found spacing." in message
    assert error_of(predictor.predict_from_list_of_npy_arrays, image, None, dict(SPACING), output) == message
    assert list(tmp_path.iterdir()) == []
    assert predictor.predict_single_npy_array(image, dict(SPACING)).shape == tiny.SHAPE


def test_an_array_is_written_as_a_file_is(predictor, tmp_path):
    files = tiny.write_case(tmp_path / "in", "a", tiny.image())
    image, properties = predictor.plans_manager.image_reader_writer_class().read_images(files)
    assert predictor.predict_single_npy_array(image, properties, None, str(tmp_path / "array"), True) is None
    predictor.predict_from_files_sequential([files], [str(tmp_path / "file")], save_probabilities=True)
    for ending in (".nii.gz", ".npz"):
        one, other = (tmp_path / f"{name}{ending}" for name in ("array", "file"))
        if ending == ".npz":
            assert np.array_equal(*(np.load(path)["probabilities"] for path in (one, other)))
        else:
            assert one.read_bytes() == other.read_bytes()
