"""Random headers and bytes are predicted with the right geometry or refused in one sentence; faults that were found."""

from __future__ import annotations

import gzip
import re
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from fuzz_inputs_cases import BAD, EVERY_VARIATION, GOOD, VARIATIONS, make_case
from fuzz_inputs_check import FAILED, judge_case, untrained_predictor

from nnunetv2_unimrseg.data.itk_formats import explain_failure
from nnunetv2_unimrseg.data.whole_image import image_problem
from nnunetv2_unimrseg.errors import UserError

SEED, NUMBERS = 0, range(100)


def message_of(path, reader="SimpleITKIO", ending=".nii.gz") -> str:
    """Predict the one file of a case; return why it is refused."""
    output = path.parent.parent / "out"
    with pytest.raises(UserError) as caught:
        untrained_predictor(reader, ending).predict_from_files(str(path.parent), str(output), False, True, 0, 0)
    message = str(caught.value)
    assert not output.exists() and "1 problem" in message and str(path) in message
    assert len(message.splitlines()) == 2 and len(message) < 500 + 2 * len(str(path))
    return message


def write_nifti(path, data, affine=None, kind=nibabel.Nifti1Image, **fields):
    image = kind(data, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.fixture
def scan(tmp_path):
    return tmp_path / "in" / "patient_0001.nii.gz"


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(60, 20, (8, 9, 10)).astype(np.float32)


@pytest.mark.parametrize("start", NUMBERS[::10])
def test_ten_random_inputs(tmp_path, start):
    for number in range(start, start + 10):
        case = make_case(number, SEED, tmp_path / f"{number}")
        outcome = judge_case(case, tmp_path / "out")
        assert outcome.kind != FAILED, f"{number} ({case.variation}, must be {case.verdict}): {outcome.detail}"


def test_the_random_inputs_have_every_variation(tmp_path):
    assert len(NUMBERS) >= EVERY_VARIATION == len(VARIATIONS)
    cases = [make_case(number, SEED, tmp_path / f"{number}") for number in NUMBERS]
    assert {case.variation for case in cases} == {" ".join(pair) for pair in VARIATIONS}
    assert {"NibabelIO", "NibabelIOWithReorient", "SimpleITKIO", "SimpleITKIOWithReorient", "NaturalImage2DIO"} == {
        case.reader for case in cases
    }
    for verdict in (GOOD, BAD):
        assert sum(case.verdict == verdict for case in cases) >= 10


def test_a_case_is_made_again_from_its_number(tmp_path):
    for number in (17, 60):
        first, second = (make_case(number, 3, tmp_path / name / f"{number}") for name in "ab")
        assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in second.files]


# --- faults that random inputs found ------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "line"), [(".mha", "ElementSpacing = "), (".nrrd", "space directions: ")])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("left", [0.3, 0.6, 0.95, -4])
def test_truncated_files_of_itk_say_so(tmp_path, ending, line, packed, left, values):
    path = tmp_path / "in" / f"patient_0001{ending}"
    tiny.write(path, values)
    sitk.WriteImage(sitk.ReadImage(str(path)), str(path), packed)
    whole = path.read_bytes()
    assert line.encode() in whole and image_problem(path) is None
    path.write_bytes(whole[: int(left * len(whole)) if left > 0 else left])
    message = message_of(path, ending=ending)
    assert "it is truncated" in message and "No such file" not in message


def test_reasons_of_itk():
    where = "Exception thrown in SimpleITK ImageFileReader_Execute: /tmp/ITK/itkMetaImageIO.cxx:490:\n"
    cut = "ITK ERROR: MetaImageIO(0x55e8d59fe810): File cannot be read: /a.mha for reading.\nReason: No such file"
    assert explain_failure(RuntimeError(where + cut)) == "File cannot be read: /a.mha for reading"
    nrrd = (
        "ITK ERROR: NrrdImageIO(0x55e8cebaaa60): Read: Error reading /a.nrrd:\n"
        '[nrrd] nrrdLoad: trouble reading "/a.nrrd"\n'
        "[nrrd] nrrdRead: trouble\n[nrrd] _nrrdFormatNRRD_read:\n"
        "[nrrd] _nrrdEncodingGzip_read: expected 96000 bytes but received 63905\n"
    )
    expected = "Read: Error reading /a.nrrd: expected 96000 bytes but received 63905"
    assert explain_failure(RuntimeError(where + nrrd)) == expected
    assert explain_failure(RuntimeError(where + nrrd.replace("ITK ERROR", "itk::ERROR"))) == expected
    unknown = 'sitk::ERROR: Unable to determine ImageIO reader for "/a.mha"'
    assert "does not know its format" in explain_failure(RuntimeError(where + unknown))
    assert explain_failure(MemoryError()) == "there is not enough memory for it"
    assert explain_failure(ValueError("a\0b\udc80" + "x" * 5000)).startswith("a?b?x")
    assert explain_failure(KeyError()) == "KeyError"
    assert len(explain_failure(ValueError("x" * 5000))) < 320


META = """ObjectType = Image
NDims = 3
BinaryData = True
CompressedData = {packed}
{stored}ElementSpacing = 2 2 2
DimSize = {sizes}
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""
NRRD = """NRRD0004
type: float
dimension: 3
space: left-posterior-superior
sizes: {sizes}
space directions: (2,0,0) (0,2,0) (0,0,2)
kinds: {kinds}
endian: little
encoding: {encoding}
space origin: (0,0,0)

"""


def write_meta(path, values, *, sizes="8 9 10", stored: int | None = None, damage=False):
    body = zlib.compress(values.tobytes())
    length = f"CompressedDataSize = {len(body) if stored is None else stored}\n" if stored != 0 else ""
    if damage:
        body = body[:-500] + bytes(500)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(META.format(packed=True, stored=length, sizes=sizes).encode() + body)
    return path


def write_nrrd(path, values, *, sizes="8 9 10", kinds="domain domain domain", encoding="gzip"):
    body = gzip.compress(values.tobytes()) if encoding == "gzip" else values.tobytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(NRRD.format(sizes=sizes, kinds=kinds, encoding=encoding).encode() + body)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stored": 0}, "no CompressedDataSize"),
        ({"stored": 700}, "end too early"),
        ({"damage": True}, "truncated or damaged"),
        ({"sizes": "8 9 11"}, "288 of 3168 bytes"),
        ({"sizes": "700 700 700"}, "more than a file of"),
        ({"sizes": "32767 32767 32767"}, "more than a file of"),
        ({"sizes": "8 9"}, "DimSize '8 9'"),
    ],
)
def test_compressed_mha_that_itk_reads_from_memory_that_nobody_wrote(tmp_path, values, changes, reason):
    path = tmp_path / "in" / "patient_0001.mha"
    assert image_problem(write_meta(path, values)) is None
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).ravel(), values.ravel())
    assert reason in message_of(write_meta(path, values, **changes), ending=".mha")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sizes": "1000 1000 1000"}, "more than a file of"),
        ({"sizes": "1000 1000 1000", "encoding": "raw"}, "it is truncated"),
        ({"sizes": "8 9 11"}, "288 of 3168 bytes"),
        ({"kinds": "x" * 5000}, "a line of 5007 characters"),
    ],
)
def test_nrrd_headers_that_crash_itk_or_take_gigabytes(tmp_path, values, changes, reason):
    path = tmp_path / "in" / "patient_0001.nrrd"
    assert image_problem(write_nrrd(path, values)) is None
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).ravel(), values.ravel())
    assert reason in message_of(write_nrrd(path, values, **changes), ending=".nrrd")


def test_long_comments_and_free_fields_of_nrrd_are_no_fault(tmp_path, values):
    path = write_nrrd(tmp_path / "in" / "patient_0001.nrrd", values)
    free = f"# {'c' * 5000}\nDWMRI:={'k' * 5000}\ncontent: {'t' * 5000}\nendian".encode()
    path.write_bytes(path.read_bytes().replace(b"endian", free, 1))
    assert image_problem(path) is None
    assert sitk.ReadImage(str(path)).GetSize() == (8, 9, 10)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 8), (2, 6, 7, 8)])
def test_whole_files_of_every_type_are_whole(tmp_path, ending, kind, shape):
    data = np.random.default_rng(0).integers(1, 100, shape).astype(kind)
    for packed in (True, False):
        path = tmp_path / f"{packed}{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(data, isVector=False), str(path), packed)
        assert image_problem(path) is None
        path.write_bytes(path.read_bytes()[:-30])
        assert "truncated" in image_problem(path)


@pytest.mark.parametrize(("ending", "kind"), [(".mha", "vector"), (".nrrd", "vector"), (".nrrd", "complex")])
def test_several_values_a_voxel(tmp_path, values, ending, kind):
    """SimpleITK's array of a colour image of four slices looks like one of four modalities."""
    path = tmp_path / "in" / f"patient_0001{ending}"
    path.parent.mkdir()
    parts = [sitk.GetImageFromArray(values[:4])] * 3
    image = sitk.Compose(parts) if kind == "vector" else sitk.RealAndImaginaryToComplex(*parts[:2])
    sitk.WriteImage(image, str(path))
    assert "values a voxel" in message_of(path, ending=ending)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize(
    ("code", "word"),
    [
        (1, "single bits"),
        (32, "complex numbers"),
        (128, "RGB colours"),
        (2304, "RGBA colours"),
        (4096, "does not exist"),
    ],
)
def test_types_that_no_scan_has(scan, values, reader, code, word):
    write_nifti(scan, values)
    changed = bytearray(gzip.decompress(scan.read_bytes()))
    changed[70:72] = code.to_bytes(2, "little")
    scan.write_bytes(gzip.compress(bytes(changed) + bytes(20000)))
    assert f"its voxels are {'of a type that ' if code == 4096 else ''}{word}" in message_of(scan, reader)


def test_bitpix_does_not_hide_a_truncated_file(scan, values):
    """SimpleITK goes by the data type, and fills what is lacking."""
    write_nifti(scan, values)
    changed = bytearray(gzip.decompress(scan.read_bytes()))
    changed[72:74] = (8).to_bytes(2, "little")
    scan.write_bytes(gzip.compress(bytes(changed[:1200])))
    assert "2032 of 2880 bytes of voxels are lacking" in message_of(scan)


def test_five_dimensions(scan, values):
    write_nifti(scan, np.stack([values] * 3, -1)[:, :, :, None])
    assert "it has 5 dimensions, of the sizes [8, 9, 10, 1, 3]" in message_of(scan)


@pytest.mark.parametrize(
    ("place", "value"), [((0, 3), np.nan), ((1, 1), np.inf), ((slice(3), 2), 0), ((slice(3), slice(3)), 1)]
)
@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_geometry_that_is_none(scan, values, place, value, reader):
    write_nifti(scan, values)
    changed = bytearray(gzip.decompress(scan.read_bytes()))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[place] = value
    changed[280:328] = affine[:3].astype("<f4").tobytes()
    changed[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")
    scan.write_bytes(gzip.compress(bytes(changed)))
    message = message_of(scan, reader)
    assert re.search("is (singular or )?(not finite|singular)", message)


def test_nifti_2_is_read_by_nibabel_only(scan, values):
    write_nifti(scan, values, kind=nibabel.Nifti2Image)
    assert "of NIfTI it knows NIfTI-1, not NIfTI-2" in message_of(scan)
    untrained_predictor("NibabelIO", ".nii.gz").predict_from_files([[str(scan)]], None, False, True, 0, 0)


@pytest.mark.parametrize("sizes", [(2, 2, 1e4), (100, 100, 100), (1e6, 1e6, 1e6)])
def test_voxels_of_an_absurd_size(scan, values, sizes):
    write_nifti(scan, values, np.diag([*sizes, 1.0]))
    assert "would be resampled to" in message_of_case(scan)


def test_an_image_that_is_nothing_without_the_zeros_around_it(scan):
    """nnU-Net leaves them out before it resamples."""
    values = np.zeros((8, 8, 8), np.float32)
    values[3:5, 3:5, 3:5] = np.arange(1, 9).reshape(2, 2, 2)
    write_nifti(scan, values, np.diag([0.4, 0.4, 0.4, 1.0]))
    message = message_of_case(scan)
    assert (
        "its 2 x 2 x 2 voxels (without zeros around) of 0.4 x 0.4 x 0.4 mm would be resampled to 0 x 0 x 0" in message
    )


def message_of_case(path) -> str:
    with pytest.raises(UserError) as caught:
        untrained_predictor("SimpleITKIO", ".nii.gz").predict_from_files(
            str(path.parent), str(path.parent.parent / "out"), False, True, 0, 0
        )
    assert not (path.parent.parent / "out").exists()
    return str(caught.value)
