"""Formats other than NIfTI, two-dimensional images and configurations, and the picture."""

from __future__ import annotations

import json

import matplotlib.image
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import tiny
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from PIL import Image
from reconstructors import QUIET, reconstruct, write_model

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.reconstruction.montage import Column, middle_of_content, write_montage
from nnunetv2_unimrseg.reconstruction.writing import LONGEST_DESCRIPTION, check_format, header_description, write_image

DESCRIPTION = header_description("T1+FLAIR", intensities=False)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".gipl", ".nii.gz"])
def test_formats_of_simpleitk(tmp_path, ending):
    image = np.random.default_rng(0).normal(size=tiny.SHAPE).astype(np.float32)
    given = tiny.write(tmp_path / f"a_0000{ending}", image)
    reader = recursive_find_reader_writer_by_name("SimpleITKIO")
    _, properties = reader().read_images([given])
    write_image(tmp_path / f"a_0001{ending}", image, reader, properties, DESCRIPTION, given)
    written = sitk.ReadImage(str(tmp_path / f"a_0001{ending}"))
    assert np.array_equal(sitk.GetArrayFromImage(written), image)
    assert written.GetSpacing() == sitk.ReadImage(given).GetSpacing()
    notes = [written.GetMetaData(key) for key in written.GetMetaDataKeys()]
    assert ending == ".gipl" or DESCRIPTION in notes
    assert len(list(tmp_path.iterdir())) == 2


def test_two_dimensional_nifti(tmp_path):
    image = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    itk_image = sitk.GetImageFromArray(image)
    itk_image.SetSpacing((0.5, 0.7))
    sitk.WriteImage(itk_image, str(tmp_path / "a_0000.nii.gz"))
    reader = recursive_find_reader_writer_by_name("SimpleITKIO")
    data, properties = reader().read_images([str(tmp_path / "a_0000.nii.gz")])
    write_image(tmp_path / "a_0001.nii.gz", data[0], reader, properties, DESCRIPTION, tmp_path / "a_0000.nii.gz")
    written = sitk.ReadImage(str(tmp_path / "a_0001.nii.gz"))
    assert written.GetSize() == (11, 9) and np.allclose(written.GetSpacing(), (0.5, 0.7))
    assert np.array_equal(sitk.GetArrayFromImage(written), image)


@pytest.mark.parametrize("codes", [(1, 2), (0, 2), (1, 0), (0, 0)])
def test_both_positions_of_a_nifti_header_are_kept(tmp_path, codes):
    image = np.random.default_rng(0).normal(size=tiny.SHAPE).astype(np.float32)
    given = nibabel.Nifti1Image(image.transpose(2, 1, 0), np.diag([2.5, 2, 3, 1]))
    sheared = np.array([[2.5, 0.3, 0, 7], [0, 2, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]])
    rotated = np.array([[0, -2, 0, 1], [2.5, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    given.set_qform(rotated, codes[0])
    given.set_sform(sheared if codes[1] else None, codes[1])
    nibabel.save(given, tmp_path / "a_0000.nii.gz")
    reader = recursive_find_reader_writer_by_name("NibabelIO")
    data, properties = reader().read_images([str(tmp_path / "a_0000.nii.gz")])
    write_image(tmp_path / "a_0001.nii.gz", data[0], reader, properties, DESCRIPTION, tmp_path / "a_0000.nii.gz")
    source, written = (nibabel.load(tmp_path / f"a_000{number}.nii.gz") for number in (0, 1))
    assert np.allclose(written.affine, source.affine)
    for form in ("get_qform", "get_sform"):
        ours, theirs = (getattr(file.header, form)(coded=True) for file in (written, source))
        assert ours[1] == theirs[1] and (not ours[1] or np.allclose(ours[0], theirs[0], atol=1e-5))
    assert np.array_equal(written.get_fdata(), source.get_fdata())
    assert written.header["descrip"].item().decode() == DESCRIPTION


def test_volumes_in_tiff(tmp_path):
    image = np.random.default_rng(0).normal(size=tiny.SHAPE).astype(np.float32)
    tifffile.imwrite(tmp_path / "a_0000.tif", image)
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [3.0, 1.0, 2.0]}))
    reader = recursive_find_reader_writer_by_name("Tiff3DIO")
    _, properties = reader().read_images([str(tmp_path / "a_0000.tif")])
    (tmp_path / "out").mkdir()
    write_image(tmp_path / "out" / "a_0001.tif", image, reader, properties, DESCRIPTION, tmp_path / "a_0000.tif")
    data, read = reader().read_images([str(tmp_path / "out" / "a_0001.tif")])
    assert np.array_equal(data[0], image) and read["spacing"] == [3.0, 1.0, 2.0]
    with tifffile.TiffFile(tmp_path / "out" / "a_0001.tif") as file:
        assert file.pages[0].description == DESCRIPTION


@pytest.mark.parametrize(
    ("ending", "kind"), [(".png", np.uint8), (".png", np.uint16), (".bmp", np.uint8), (".tif", None)]
)
def test_natural_images(tmp_path, ending, kind):
    source = (np.arange(12 * 14).reshape(12, 14)).astype(kind or np.float32)
    like = tmp_path / f"a_0000{ending}"
    Image.fromarray(source).save(like)
    reader = recursive_find_reader_writer_by_name("NaturalImage2DIO")
    data, properties = reader().read_images([str(like)])
    image = data[0] * 400.3 - 5
    write_image(tmp_path / f"a_0001{ending}", image, reader, properties, DESCRIPTION, like)
    written, _ = reader().read_images([str(tmp_path / f"a_0001{ending}")])
    expected = image if kind is None else np.clip(np.round(image), 0, np.iinfo(kind).max)
    assert np.array_equal(written[0], expected)
    if ending == ".png":
        assert Image.open(tmp_path / "a_0001.png").text["Description"] == DESCRIPTION


def test_normalised_units_do_not_fit_into_integer_formats():
    reader = recursive_find_reader_writer_by_name("NaturalImage2DIO")
    with pytest.raises(UserError, match="--intensities"):
        check_format(reader, ".png", intensities=False)
    check_format(reader, ".png", intensities=True)
    check_format(reader, ".tif", intensities=False)
    with pytest.raises(UserError, match="Mine cannot be written"):
        check_format(type("Mine", (), {}), ".nii.gz", intensities=False)


def test_descriptions_are_short_ascii():
    text = header_description("+".join(["größe"] * 30), intensities=True)
    assert len(text) == LONGEST_DESCRIPTION and text.isascii() and text.startswith("SYNTHETIC")


def two_dimensional(plans: dict) -> dict:
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = configuration["patch_size"][1:]
    configuration["spacing"] = configuration["spacing"][1:]
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["conv_op"], arguments["norm_op"] = (arguments[key].replace("3d", "2d") for key in ("conv_op", "norm_op"))
    for key in ("kernel_sizes", "strides"):
        arguments[key] = [entry[1:] for entry in arguments[key]]
    return plans


def test_a_two_dimensional_configuration_reconstructs_volumes(tmp_path, monkeypatch):
    """The plans' first axis is the slices': it is not resampled, whatever the spacing."""
    data = tiny.image(1)
    plans = two_dimensional(tiny.plans(spacing=(9.0, 3.0, 2.5)))
    model = write_model(tmp_path / "models", monkeypatch, plans=plans)
    tiny.write_case(tmp_path / "in", "case", data, (2,))
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), use_mirroring=False, **QUIET)
    written = sitk.GetArrayFromImage(sitk.ReadImage(table.set_index("modality").loc["T2", "file"]))
    assert np.allclose(written, 4 * data[2], rtol=1e-5)


def test_a_dataset_of_png_files(tmp_path, monkeypatch):
    plans = two_dimensional(tiny.plans(["RGBTo01Normalization"] * 3, spacing=(9, 1, 1), reader="NaturalImage2DIO"))
    plans |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    dataset_json = tiny.dataset_json(("red", "green", "blue"), ".png")
    model = write_model(tmp_path / "models", monkeypatch, plans=plans, dataset_json=dataset_json)
    source = np.random.default_rng(0).integers(1, 60, (20, 24)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(source).save(tmp_path / "in" / "case_0000.png")
    with pytest.raises(UserError, match="--intensities"):
        reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), **QUIET)
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), intensities=True, **QUIET)
    for factor, path in zip((2, 3), table["file"], strict=True):
        written = np.asarray(Image.open(path))
        assert written.dtype == np.uint8 and np.abs(written.astype(int) - factor * source.astype(int)).max() == 0


def test_a_constant_channel_of_a_colour_picture_is_made(tmp_path, monkeypatch):
    plans = two_dimensional(tiny.plans(["RGBTo01Normalization"] * 3, spacing=(9, 1, 1), reader="NaturalImage2DIO"))
    plans |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    dataset_json = tiny.dataset_json(("red", "green", "blue"), ".png")
    model = write_model(tmp_path / "models", monkeypatch, plans=plans, dataset_json=dataset_json)
    source = np.random.default_rng(0).integers(1, 200, (20, 24, 3)).astype(np.uint8)
    source[..., 0] = 7
    (tmp_path / "in").mkdir()
    Image.fromarray(source).save(tmp_path / "in" / "case_0000.png")
    table = reconstruct(tmp_path / "in", tmp_path / "out", model, (0,), intensities=True, **QUIET)
    assert list(table["modality"]) == ["red"]
    assert np.array_equal(np.asarray(Image.open(table["file"][0])), source[..., 1])


def test_the_picture(tmp_path):
    image = np.random.default_rng(0).normal(size=(20, 30))
    columns = {
        "T1$_{c}": Column(image, "input"),
        "<b>T2</b>": Column(image, "truth", image + 1, "L1 1.000"),
        "PET": Column(synthetic=image),
        "CT": Column(),
    }
    write_montage(tmp_path / "picture.png", columns, "case_$1_: synthetic", (2.0, 1.0))
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_slice_shown_is_the_middle_of_the_content():
    mask = np.zeros((20, 4, 4), dtype=bool)
    assert middle_of_content(mask) == 10
    mask[11:16, 2] = True
    assert middle_of_content(mask) == 13
