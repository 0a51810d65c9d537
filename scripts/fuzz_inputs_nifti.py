"""Odd and bad NIfTI files for fuzz_inputs.py: each function changes one thing and says what must come of it."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

GOOD, BAD, EITHER = "predicted", "refused", "either"
"""What must come of a file; EITHER: one of the two, it is no fault which."""

INTEGERS = {2: "u1", 4: "i2", 8: "i4", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
FLOATS = {16: "f4", 64: "f8"}
NO_SCANS = {1: 1, 32: 64, 128: 24, 1536: 128, 1792: 128, 2048: 256, 2304: 32}
"""Codes of NIfTI that no scan has -> bits a voxel: binary, complex, colours, float128."""

NONSENSE = (0, 3, 255, 257, 1023, 4096, 32767, -1, -16)
NOT_FINITE = (math.nan, math.inf, -math.inf)


@dataclass
class Nifti:
    """What a file is made of.

    Attributes:
        values: `(x, y, z)`, intensities.
        affine: from voxels to positions.
        version: 1 or 2.
        order: of the bytes, "<" or ">".
        code: of the data type.
        fields: what the header says instead of what is true: name -> value, or (index, value) pairs of an array.
        forms: qform_code and sform_code.
        after: bytes after the voxels.
        offset: where the voxels begin; None for the usual place.
        raw: the voxels' bytes; None for those of `values`.
    """

    values: np.ndarray
    affine: np.ndarray
    version: int = 1
    order: str = "<"
    code: int = 16
    fields: list[tuple[str, int | None, object]] = field(default_factory=list)
    forms: tuple[int, int] = (1, 1)
    after: bytes = b""
    offset: int | None = None
    raw: bytes | None = None

    def set(self, name: str, value: object, index: int | None = None) -> None:
        """Let a field of the header be this, whatever is true."""
        self.fields.append((name, index, value))

    def header(self) -> np.ndarray:
        """Return the header as a record."""
        kind = Nifti1Header if self.version == 1 else Nifti2Header
        true = kind()
        true.set_data_shape(self.values.shape)
        true.set_zooms(
            [*np.linalg.norm(self.affine[:3, :3], axis=0), *[1] * (self.values.ndim - 3)][: self.values.ndim]
        )
        true.set_qform(self.affine, code=self.forms[0])
        true.set_sform(self.affine if self.forms[1] else None, code=self.forms[1])
        true["xyzt_units"] = 2
        record = np.array(true.structarr, dtype=kind.template_dtype.newbyteorder(self.order))
        record["magic"] = b"n+1" if self.version == 1 else b"n+2"
        record["vox_offset"] = self.offset or (352 if self.version == 1 else 544)
        record["datatype"], record["bitpix"] = self.code, bits_per_voxel(self.code)
        for name, index, value in self.fields:
            kind_of_field = record[name].dtype
            if kind_of_field.kind in "iu" and np.ndim(value) == 0:
                limits = np.iinfo(kind_of_field)
                value = min(max(int(value), limits.min), limits.max)
            with np.errstate(all="ignore"):
                if index is None:
                    record[name] = value
                else:
                    record[name][index] = value
        return record

    def build(self) -> bytes:
        """Return the file, uncompressed."""
        start = self.header().tobytes()
        usual = 352 if self.version == 1 else 544
        return start.ljust(self.offset or usual, b"\0") + (self.raw or self.encoded()) + self.after

    def encoded(self) -> bytes:
        """Return the voxels in the file's type."""
        values = self.values.transpose()
        if self.code in INTEGERS:
            kind = np.dtype(self.order + INTEGERS[self.code])
            return np.clip(np.round(values), *_limits(kind)).astype(kind).tobytes()
        if self.code in FLOATS:
            with np.errstate(over="ignore"):
                return values.astype(self.order + FLOATS[self.code]).tobytes()
        if self.code == 1:
            return np.packbits(values > 60).tobytes()
        single = values.astype(self.order + "f4").tobytes()
        return (single * 8)[: (values.size * bits_per_voxel(self.code) + 7) // 8]


def _limits(kind: np.dtype) -> tuple[float, float]:
    limits = np.iinfo(kind)
    return max(limits.min, -(2**62)), min(limits.max, 2**62)


def bits_per_voxel(code: int) -> int:
    """Return the bits of a voxel of a type; 32 of one that does not exist."""
    if code in INTEGERS or code in FLOATS:
        return np.dtype({**INTEGERS, **FLOATS}[code]).itemsize * 8
    return NO_SCANS.get(code, 32)


def real_type(rng: np.random.Generator, file: Nifti) -> str:
    """Every type of real numbers that SimpleITK and nibabel know."""
    file.code = int(rng.choice([*INTEGERS, *FLOATS]))
    file.order = str(rng.choice(["<", ">"]))
    return GOOD


def no_scan_type(rng: np.random.Generator, file: Nifti) -> str:
    """Colours, complex numbers, single bits: no scan has them."""
    file.code = int(rng.choice([*NO_SCANS]))
    return EITHER if file.code == 1536 else BAD


def nonsense_type(rng: np.random.Generator, file: Nifti) -> str:
    """Codes that do not exist."""
    file.code = int(rng.choice(NONSENSE))
    return BAD


def wrong_bits(rng: np.random.Generator, file: Nifti) -> str:
    """bitpix that contradicts the type, with or without enough bytes behind it."""
    file.code = int(rng.choice([*INTEGERS, *FLOATS]))
    file.set("bitpix", rng.choice([0, 1, 8, 16, 32, 64, 128, -8, 32767]))
    if rng.random() < 0.5:
        file.raw = file.encoded()[: int(rng.integers(1, file.values.size))]
        return BAD
    return EITHER


def scaling(rng: np.random.Generator, file: Nifti) -> str:
    """scl_slope and scl_inter."""
    file.code = int(rng.choice([*INTEGERS, *FLOATS]))
    slope = float(rng.choice([0, 1, 2, -2, 1e30, 1e-30, -1e38, 1e-42, *NOT_FINITE]))
    inter = float(rng.choice([0, 0, -100, 1e-3, 1e30, -3e38, *NOT_FINITE]))
    file.set("scl_slope", slope)
    file.set("scl_inter", inter)
    return GOOD if slope in (1, 2) and inter == 0 else EITHER


def dimensions(rng: np.random.Generator, file: Nifti) -> str:
    """Counts of dimensions and sizes that the voxels do not have."""
    if rng.random() < 0.4:
        number = int(rng.integers(-1, 9))
        file.set("dim", number, 0)
        return BAD if number < 1 or number > 7 else EITHER
    size = int(rng.choice([0, 1, 2, -1, -5, 7, 32767, -32768, 4096]))
    axis = int(rng.integers(1, 6))
    file.set("dim", size, axis)
    return BAD if axis < 4 and (size < 1 or size > 4000) else EITHER


def volumes(rng: np.random.Generator, file: Nifti) -> str:
    """Four dimensions, of one volume or several; five."""
    number = int(rng.choice([1, 1, 2, 3, 4]))
    more = [number] if rng.random() < 0.7 else [1, number]
    file.values = np.stack([file.values] * number, -1).reshape(*file.values.shape, *more)
    return EITHER


def flat(rng: np.random.Generator, file: Nifti) -> str:
    """Two dimensions, or one."""
    if rng.random() < 0.7:
        file.values = file.values[:, :, file.values.shape[2] // 2]
    else:
        file.values = file.values[:, 3, 3]
    return EITHER


def voxel_sizes(rng: np.random.Generator, file: Nifti) -> str:
    """pixdim: impossible, absurd, huge or tiny voxels; all axes or one; with forms or without."""
    value = float(rng.choice([0, -1, -2.5, 0.2, 100, 1e4, 1e-6, 1e6, 1e-20, 1e-45, 3e38, *NOT_FINITE]))
    axes = (1, 2, 3) if rng.random() < 0.5 else (int(rng.integers(1, 4)),)
    if (
        value == 100
    ):  # along all axes it gives an image of a usual size, for which 16 x 16 x 16 voxels at a time are few
        axes = axes[:1]
    for axis in axes:
        file.set("pixdim", value, axis)
    if rng.random() < 0.6:
        file.set("sform_code", 0)
    if rng.random() < 0.3:
        file.set("qform_code", 0)
    return EITHER


def forms(rng: np.random.Generator, file: Nifti) -> str:
    """Matrices that are no geometry, and codes."""
    for name in ("qform_code", "sform_code"):
        file.set(name, rng.choice([0, 1, 1, 2, 4, 5, 99, -1]))
    kind = rng.choice(["zero", "singular", "sheared", "nan", "huge", "mirrored", "flat", "tiny", "quaternion", "qfac"])
    matrix = file.affine.copy()
    if kind == "zero":
        matrix[:3, :3] = 0
    elif kind == "singular":
        matrix[:, 1] = matrix[:, 0]
    elif kind == "sheared":
        matrix[0, 1] += float(rng.choice([1e-4, 0.1, 1, 5]))
    elif kind == "nan":
        matrix[int(rng.integers(3)), int(rng.integers(4))] = rng.choice(NOT_FINITE)
    elif kind == "huge":
        matrix[:3, 3] = float(rng.choice([1e6, 1e15, 3e38]))
    elif kind == "mirrored":
        matrix[0] *= -1
    elif kind == "flat":
        matrix[:3, 2] = 0
    elif kind == "tiny":
        matrix[:3, :3] *= float(rng.choice([1e-10, 1e-30, 1e10]))
    elif kind == "quaternion":
        for letter in "bcd":
            file.set(f"quatern_{letter}", rng.choice([0, 0.7, -1, 2, 1e30, *NOT_FINITE]))
    else:
        file.set("pixdim", rng.choice([0, -1, 1, 5, *NOT_FINITE]), 0)
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        file.set(name, matrix[row])
    for axis, name in enumerate(("qoffset_x", "qoffset_y", "qoffset_z")):
        file.set(name, matrix[axis, 3])
    return EITHER


def swapped(rng: np.random.Generator, file: Nifti) -> str:
    """Some fields, or the header or the voxels alone, in the other byte order."""
    kind = rng.choice(["dim", "pixdim", "datatype", "sizeof_hdr", "vox_offset", "header"])
    if kind == "header":
        file.raw = file.encoded()
        file.order = ">" if file.order == "<" else "<"
    else:
        file.set(str(kind), file.header()[kind].byteswap())
    return EITHER


def magic(rng: np.random.Generator, file: Nifti) -> str:
    """The letters by which NIfTI is known."""
    letters = [b"ni1\0", b"n+1 ", b"n+2", b"n+1", b"", b"abcd", bytes(rng.integers(0, 256, 4, dtype=np.uint8))]
    file.set("magic", letters[int(rng.integers(len(letters)))])
    return EITHER


def voxel_offset(rng: np.random.Generator, file: Nifti) -> str:
    """vox_offset: a true one that is not the usual, and wrong ones."""
    if rng.random() < 0.3:
        file.offset = int(rng.choice([400 if file.version == 1 else 544, 560, 1024, 4096]))
        return GOOD
    value = float(rng.choice([0, 351, 352, 353, 400, -16, 1e9, 3e38, *NOT_FINITE]))
    file.set("vox_offset", value if file.version == 1 or math.isfinite(value) else -1)
    return BAD if value >= 400 or not math.isfinite(value) else EITHER


def other_fields(rng: np.random.Generator, file: Nifti) -> str:
    """Fields that have little to do with the image."""
    name, value = [
        ("xyzt_units", int(rng.integers(0, 256))), ("xyzt_units", int(rng.choice([0, 1, 2, 3]))),
        ("sizeof_hdr", int(rng.choice([0, 347, 540, 348, -1]))), ("intent_code", int(rng.choice([1002, 1007, 2003]))),
        ("dim_info", 255), ("cal_max", math.nan), ("toffset", math.inf), ("slice_code", 77), ("slice_duration", -1.0),
    ][int(rng.integers(9))]  # fmt: skip
    file.set(name, value)
    return EITHER


def appended(rng: np.random.Generator, file: Nifti) -> str:
    """Bytes after the voxels."""
    file.after = bytes(rng.integers(0, 256, int(rng.choice([1, 7, 4096])), dtype=np.uint8))
    return GOOD


def intensities(rng: np.random.Generator, file: Nifti) -> str:
    """Values that no scan has, or only a strange one."""
    file.code = int(rng.choice([16, 64]))
    some = rng.random(file.values.shape) < 0.1
    kind = rng.choice(
        ["nan", "inf", "lowest", "1e35", "1e15", "constant", "zero", "two", "denormal", "integer", "all nan"]
    )
    values = {"nan": math.nan, "inf": -math.inf, "lowest": -np.finfo(np.float32).max, "1e35": 1e35, "1e15": 1e15}
    if kind in values:
        file.values = np.where(some, values[kind], file.values)
    elif kind in ("constant", "zero", "all nan"):
        file.values = np.full_like(file.values, {"constant": 12.5, "zero": 0, "all nan": math.nan}[kind])
    elif kind == "two":
        file.values = np.where(file.values > 60, 1.0, 0.0)
    elif kind == "denormal":
        file.values = file.values * float(rng.choice([1e-42, 1e-310]))
    else:
        file.code = int(rng.choice([*INTEGERS]))
        file.values = np.where(some, rng.choice([-1e30, 1e30]), file.values)
    return BAD if kind in ("nan", "inf", "all nan") else EITHER


def odd_geometry(rng: np.random.Generator, file: Nifti) -> str:
    """A geometry that is unusual and right: it must be kept exactly."""
    kind = rng.choice(["oblique", "mirrored", "permuted", "far", "fine", "coarse", "no forms", "qform", "sform"])
    sizes, turn = np.linalg.norm(file.affine[:3, :3], axis=0), np.eye(3)
    if kind in ("oblique", "qform", "sform"):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    elif kind == "mirrored":
        turn = np.diag(rng.choice([-1.0, 1.0], 3))
    elif kind == "permuted":
        turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    elif kind == "far":
        file.affine[:3, 3] = rng.normal(size=3) * 1e5
    elif kind in ("fine", "coarse"):
        sizes = sizes * (0.5 if kind == "fine" else 3)
    file.affine[:3, :3] = turn * sizes
    file.forms = {"no forms": (0, 0), "qform": (1, 0), "sform": (0, 2)}.get(str(kind), (1, int(rng.integers(0, 2))))
    return GOOD


HEADER_CHANGES: tuple[Callable[[np.random.Generator, Nifti], str], ...] = (
    real_type, no_scan_type, nonsense_type, wrong_bits, scaling, dimensions, volumes, flat, voxel_sizes, forms, swapped,
    magic, voxel_offset, other_fields, appended, intensities,
)  # fmt: skip


def truncated(rng: np.random.Generator, content: bytes, packed: bool) -> tuple[bytes, str]:
    """Cut at a 64th byte, before or after compression."""
    whole = gzip.compress(content, mtime=0) if packed else content
    if packed and rng.random() < 0.4:
        return gzip.compress(content[: 64 * int(rng.integers(0, (len(content) + 63) // 64))], mtime=0), BAD
    return whole[: 64 * int(rng.integers(0, (len(whole) + 63) // 64))], BAD


def flipped(rng: np.random.Generator, content: bytes, packed: bool) -> tuple[bytes, str]:
    """One byte of the header or, less often, of the voxels is another one."""
    changed = bytearray(content)
    place = int(rng.integers(0, 352 if rng.random() < 0.8 else len(content)))
    changed[place] ^= int(rng.integers(1, 256))
    return (gzip.compress(bytes(changed), mtime=0) if packed else bytes(changed)), EITHER


def gzip_damage(rng: np.random.Generator, content: bytes, packed: bool) -> tuple[bytes, str]:
    """What happens to compressed files."""
    whole = gzip.compress(content, mtime=0)
    kind = rng.choice(["flip", "members", "garbage", "zeros", "other", "twice"])
    if kind == "flip":
        changed = bytearray(whole)
        place = int(rng.integers(0, len(whole)))
        changed[place] ^= int(rng.integers(1, 256))
        return bytes(changed), BAD if place > 10 else EITHER
    if kind == "members":
        cut = int(rng.integers(0, len(content)))
        return gzip.compress(content[:cut]) + gzip.compress(content[cut:]), GOOD if packed else EITHER
    if kind == "other":  # a plain file named .gz, a compressed one named .nii
        return (content if packed else whole), EITHER
    if kind == "twice":
        return gzip.compress(whole), BAD
    return whole + (b"\0" * 100 if kind == "zeros" else bytes(rng.integers(1, 256, 50, dtype=np.uint8))), EITHER


BYTE_CHANGES: tuple[Callable[[np.random.Generator, bytes, bool], tuple[bytes, str]], ...] = (
    truncated, truncated, flipped, flipped, gzip_damage,
)  # fmt: skip
