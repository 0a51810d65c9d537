import itertools
import multiprocessing
import pickle

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from preprocessing_case import Case, same_bits

from nnunetv2_unimrseg.data.preprocessing import (
    UniMRSegConfigurationManager,
    UniMRSegPreprocessor,
    enable_incomplete_cases,
)
from nnunetv2_unimrseg.data.whole_image import nifti_problem
from nnunetv2_unimrseg.errors import UserError


@pytest.fixture
def case():
    return Case()


def test_a_complete_case_is_preprocessed_as_by_nnunet(case, tmp_path):
    files = tiny.write_case(tmp_path, "p", tiny.image())
    ours, stock = case.from_files(files), case.from_files(files, DefaultPreprocessor)
    assert same_bits(ours[0], stock[0]) and same_bits(ours[1], stock[1])
    assert ours[2].pop("available_modalities") == [True] * 4
    assert ours[2] == stock[2]


@pytest.mark.parametrize("spacing", [(2.5, 2.5, 2.5), (2.0, 3.0, 2.5)], ids=["resampled", "not resampled"])
@pytest.mark.parametrize("use_mask", [True, False])
@pytest.mark.parametrize("missing", range(4), ids=tiny.NORMALISERS)
@pytest.mark.parametrize("intensity", [0, 1, -1024, 7.3])
def test_absent_and_constant_files_give_the_same_bits(tmp_path, missing, intensity, use_mask, spacing):
    case = Case(use_mask=use_mask, spacing=spacing)
    data = tiny.image()
    data[missing] = intensity
    complete = tiny.write_case(tmp_path, "p", data)
    absent = [file for channel, file in enumerate(complete) if channel != missing]
    from_constant, from_absent = case.from_files(complete), case.from_files(absent)
    from_array = case.from_array(data)
    assert same_bits(from_constant[0], from_absent[0]) and same_bits(from_array[0], from_absent[0])
    assert same_bits(from_constant[1], from_absent[1])
    assert from_constant[2] == from_absent[2]
    assert from_absent[0].dtype == np.float32
    expected = [channel != missing for channel in range(4)]
    assert from_absent[2]["available_modalities"] == expected
    assert [bool(np.isnan(channel).all()) for channel in from_absent[0]] == [not present for present in expected]
    assert np.isfinite(from_absent[0][expected]).all()


def test_a_missing_modality_leaks_nowhere(case):
    """The crop is the union of nonzero voxels: here the missing channel alone would make it larger."""
    data = tiny.image()
    data[0] = 500
    small = case.from_array(data)[2]["bbox_used_for_cropping"]
    data[0, 0, 0, 0] = 100
    assert case.from_array(data)[2]["bbox_used_for_cropping"] != small


def test_values_that_differ_only_beyond_float32_are_constant(case):
    data = tiny.image().astype(np.float64)
    data[1] = 1e9
    data[1, 3, 3, 3] += 1e-3
    assert case.from_array(data)[2]["available_modalities"] == [True, False, True, True]


def test_the_callers_array_is_not_changed(case):
    data = tiny.image()
    data[2] = 5
    before = data.copy()
    case.from_array(data)
    assert same_bits(data, before)


def test_the_segmentation_of_a_previous_stage_is_kept(case):
    data = tiny.image()
    data[2] = 0
    seg = np.zeros((1, *tiny.SHAPE), dtype=np.int8)
    seg[:, 5:9, 5:9, 5:9] = 1
    assert (case.from_array(data, seg=seg)[1] == 1).any()


@pytest.mark.parametrize("channels", [[2], [3, 0], [1, 2, 3]], ids=str)
def test_the_suffix_says_which_channel_a_file_is(case, tmp_path, channels):
    files = tiny.write_case(tmp_path, "p", tiny.image(), channels)
    assert case.from_files(files)[2]["available_modalities"] == [number in channels for number in range(4)]


def test_as_many_files_as_channels_are_positional(case, tmp_path):
    data = tiny.image()
    named = [tiny.write(tmp_path / f"{name}.nii.gz", channel) for name, channel in zip("dcba", data, strict=True)]
    assert same_bits(case.from_files(named)[0], case.from_array(data)[0])


@pytest.mark.parametrize("name", ["p.nii.gz", "p_0000.nii.gz"])
def test_one_file_of_all_channels_is_complete(case, tmp_path, name):
    data = tiny.image()
    itk_image = sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in data])
    itk_image.SetSpacing((*tiny.SPACING[::-1], 1.0))
    sitk.WriteImage(itk_image, str(tmp_path / name))
    image, _, properties = case.from_files([str(tmp_path / name)])
    assert same_bits(image, case.from_array(data)[0])
    written = tmp_path / "seg.nii.gz"
    case.plans_manager.image_reader_writer_class().write_seg(np.ones(tiny.SHAPE), str(written), properties)
    assert sitk.ReadImage(str(written)).GetSpacing() == tiny.SPACING[::-1]


def test_the_geometry_is_that_of_the_first_available_file(case, tmp_path):
    data = tiny.image()
    data[0] = 3
    files = [
        tiny.write(tmp_path / f"p_{channel:04d}.nii.gz", data[channel], origin=(channel * 0.1, 0, 0))
        for channel in range(2)
    ]
    with pytest.warns(UserWarning, match=r"p_0001.*p_0000.*voxels apart"):
        properties = case.from_files(files)[2]
    assert properties["sitk_stuff"]["origin"][0] == pytest.approx(0.1)


def test_what_is_missing_is_printed(case, tmp_path, capsys):
    case.from_files(tiny.write_case(tmp_path, "p", tiny.image(), [0, 2]))
    assert "p: CT+T1 available, PET+T2 missing" in capsys.readouterr().out


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_no_file(case):
    assert "no file" in error_of(case.from_files, [])


def test_a_name_without_channel_suffix(case, tmp_path):
    file = tiny.write(tmp_path / "patient.nii.gz", tiny.image()[0])
    message = error_of(case.from_files, [file])
    assert "no channel suffix" in message and file in message and "0001 (PET)" in message


@pytest.mark.parametrize("channels", [[0, 4], [0, 1, 2, 7]], ids=["fewer files", "as many files as channels"])
def test_an_unknown_channel(case, tmp_path, channels):
    data = tiny.image(channels=8)
    message = error_of(case.from_files, tiny.write_case(tmp_path, "p", data, channels))
    assert f"there is no channel {channels[-1]:04d}" in message and "the last is 0003" in message


def test_a_channel_given_twice(case, tmp_path):
    files = tiny.write_case(tmp_path / "a", "p", tiny.image(), [1])
    files += tiny.write_case(tmp_path / "b", "p", tiny.image(), [1])
    message = error_of(case.from_files, files)
    assert "a second time" in message and all(file in message for file in files)


def test_files_of_different_shape(case, tmp_path):
    data = tiny.image()
    files = [tiny.write(tmp_path / "p_0000.nii.gz", data[0]), tiny.write(tmp_path / "p_0001.nii.gz", data[1][:-1])]
    message = error_of(case.from_files, files)
    assert all(file in message for file in files)
    assert "14 x 16 x 18" in message and "13 x 16 x 18" in message


def test_files_of_different_spacing(case, tmp_path):
    data = tiny.image()
    files = tiny.write_case(tmp_path, "p", data, [0])
    files.append(tiny.write(tmp_path / "p_0002.nii.gz", data[2], spacing=(3.0, 2.0, 2.6)))
    message = error_of(case.from_files, files)
    assert all(file in message for file in files) and "spacing" in message and "2.6" in message


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize(
    ("moved", "is_error"), [(0.4, False), (0.6, True)], ids=["below half a voxel", "beyond half a voxel"]
)
def test_files_of_different_origin(tmp_path, moved, is_error, reader):
    case = Case(reader=reader)
    data = tiny.image()
    files = tiny.write_case(tmp_path, "p", data, [0])
    step = tiny.SPACING[0]  # along z
    files.append(tiny.write(tmp_path / "p_0002.nii.gz", data[2], origin=(-7.0, 11.0, 5.0 + moved * step)))
    if is_error:
        message = error_of(case.from_files, files)
        assert all(file in message for file in files) and "0.60 voxels" in message
    else:
        with pytest.warns(UserWarning, match="0.400 voxels apart"):
            case.from_files(files)


@pytest.mark.parametrize(("angle", "is_error"), [(0.02, False), (0.2, True)])
def test_files_of_different_direction(case, tmp_path, angle, is_error):
    """A rotation about a corner voxel: the origin is the same, the far corners move."""
    data = tiny.image()
    turn = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    files = tiny.write_case(tmp_path, "p", data, [0])
    files.append(tiny.write(tmp_path / "p_0002.nii.gz", data[2], direction=turn))
    if is_error:
        assert "origin or direction" in error_of(case.from_files, files)
    else:
        with pytest.warns(UserWarning, match="voxels apart"):
            case.from_files(files)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_whole_files_of_every_type_are_accepted(tmp_path, dtype, ending):
    file = tiny.write(tmp_path / f"p{ending}", tiny.image()[1].astype(dtype))
    assert nifti_problem(file) is None


@pytest.mark.parametrize("image_class", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("order", "<>")
def test_headers_of_every_kind_are_understood(tmp_path, image_class, order):
    data = tiny.image()[1]
    header = getattr(nibabel, image_class).header_class(endianness=order)
    header.set_data_dtype(np.float64)
    path = tmp_path / "p.nii"
    nibabel.save(getattr(nibabel, image_class)(data, np.eye(4), header), path)
    assert nifti_problem(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "1 of" in nifti_problem(path)
    path.write_bytes(whole[:-8] + np.array(np.inf, f"{order}f8").tobytes())
    assert "infinite" in nifti_problem(path)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path, reader, ending, kept):
    case = Case(reader=reader)
    case.dataset_json["file_ending"] = ending
    file = tmp_path / f"p_0001{ending}"
    tiny.write(file, tiny.image()[1])
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    message = error_of(case.from_files, [str(file)])
    assert str(file) in message and "cannot be used" in message


def test_a_damaged_byte_is_found_by_the_checksum(case, tmp_path):
    file = tmp_path / "p_0001.nii.gz"
    tiny.write(file, tiny.image()[1])
    whole = bytearray(file.read_bytes())
    whole[-8] ^= 0xFF
    file.write_bytes(whole)
    assert "damaged" in error_of(case.from_files, [str(file)])


def test_a_file_that_is_not_there(case, tmp_path):
    assert "no such file" in error_of(case.from_files, [str(tmp_path / "p_0001.nii.gz")])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_inf_in_a_present_modality(case, tmp_path, value):
    data = tiny.image()
    data[1, 2, 3, 4] = value
    files = tiny.write_case(tmp_path, "p", data)
    message = error_of(case.from_files, files)
    assert files[1] in message and "holds NaN or infinite" in message
    assert "PET (channel 1) holds NaN or infinite" in error_of(case.from_array, data)


def test_nan_in_another_format_names_the_modality(case, tmp_path):
    case.dataset_json["file_ending"] = ".mha"
    data = tiny.image()
    data[1, 2, 3, 4] = np.nan
    file = tiny.write(tmp_path / "p_0001.mha", data[1])
    assert "PET (channel 1) holds NaN or infinite" in error_of(case.from_files, [file])


def test_no_available_modality(case, tmp_path):
    data = np.stack([np.full(tiny.SHAPE, number, dtype=np.float32) for number in range(4)])
    files = tiny.write_case(tmp_path, "p", data)
    for message in (error_of(case.from_files, files), error_of(case.from_array, data)):
        assert "no modality is available" in message and "CT, PET, T1, T2" in message


def test_a_case_tells_all_its_problems_at_once(case, tmp_path):
    data = tiny.image(channels=8)
    files = tiny.write_case(tmp_path, "p", data, [0, 6])
    files += [str(tmp_path / "p_0001.nii.gz"), tiny.write(tmp_path / "q.nii.gz", data[0][1:])]
    message = error_of(case.from_files, files[1:])
    for part in ("no channel 0006", "no such file", "differ in shape", "no channel suffix"):
        assert part in message


def test_an_array_of_the_wrong_number_of_channels(case):
    assert "(4, X, Y, Z)" in error_of(case.from_array, tiny.image(channels=3))


def test_one_object_changes_and_nothing_else():
    before = {name: vars(ConfigurationManager)[name] for name in vars(ConfigurationManager)}
    first = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    second = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    enable_incomplete_cases(first)
    assert first.preprocessor_class is UniMRSegPreprocessor
    assert second.preprocessor_class is DefaultPreprocessor
    assert type(second) is ConfigurationManager
    assert dict(vars(ConfigurationManager)) == before
    assert PlansManager(tiny.plans()).get_configuration("3d_fullres").preprocessor_class is DefaultPreprocessor
    assert first.configuration == second.configuration


def _preprocessor_name(configuration_manager, answers):
    answers.put(configuration_manager.preprocessor_class.__name__)


def test_the_configuration_survives_a_spawned_process():
    configuration = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    enable_incomplete_cases(configuration)
    assert type(pickle.loads(pickle.dumps(configuration))) is UniMRSegConfigurationManager
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_preprocessor_name, args=(configuration, answers))
    process.start()
    assert answers.get(timeout=120) == "UniMRSegPreprocessor"
    process.join()


def test_a_preprocessor_of_ones_own_is_refused():
    configuration = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    configuration.configuration["preprocessor_name"] = "MyPreprocessor"
    assert "MyPreprocessor" in error_of(enable_incomplete_cases, configuration)


def test_plans_of_another_number_of_channels(case):
    case.dataset_json = tiny.dataset_json(("CT", "PET", "T1"))
    message = error_of(case.from_array, tiny.image(channels=3))
    assert "names 3 channels" in message and "plans have 4" in message


def test_every_subset_of_files(case, tmp_path):
    files = tiny.write_case(tmp_path, "p", tiny.image())
    for subset in itertools.product((False, True), repeat=4):
        if any(subset):
            data, _, properties = case.from_files(list(itertools.compress(files, subset)))
            assert properties["available_modalities"] == list(subset)
            assert [not np.isnan(channel).any() for channel in data] == list(subset)
