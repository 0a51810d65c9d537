"""Odd and bad `.mha`, `.nrrd` and `.png` files for fuzz_inputs.py, and files of other formats under an image's name."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field

import numpy as np
from fuzz_inputs_nifti import BAD, EITHER, GOOD, Nifti
from PIL import Image

META_TYPES = {"UCHAR": "u1", "CHAR": "i1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "FLOAT": "f4", "DOUBLE": "f8"}
NRRD_TYPES = {
    "uint8": "u1", "signed char": "i1", "short": "i2", "ushort": "u2", "int": "i4", "float": "f4", "double": "f8",
}  # fmt: skip
SIZES = (
    "0 0 0", "-1 6 6", "1 1 1", "32767 32767 32767", "1000 1000 1000", "700 700 700", "6 6", "6 6 6 6", "a b c", "",
    "1e9 1 1",
)  # fmt: skip
NUMBERS = ("0 0 0", "-1 2 2", "nan nan nan", "inf 1 1", "1e-6 1e-6 1e-6", "1e6 1e6 1e6", "1 1", "x", "", "1e300 1 1")


@dataclass
class Text:
    """A file with a header of text lines, `.mha` or `.nrrd`.

    Attributes:
        lines: name -> value.
        body: the voxels as they lie in the file.
        meta: whether it is `.mha`.
    """

    lines: dict[str, str]
    body: bytes
    meta: bool
    extra: list[str] = field(default_factory=list)

    def build(self) -> bytes:
        """Return the file."""
        mark = " = " if self.meta else ": "
        named = [f"{name}{mark}{value}" for name, value in self.lines.items()]
        if self.meta:
            return "\n".join([*self.extra, *named, ""]).encode() + self.body
        return "\n".join(["NRRD0004", *named, *self.extra, "", ""]).encode() + self.body


def text_file(values: np.ndarray, affine: np.ndarray, kind: str, *, meta: bool, packed: bool) -> Text:
    """Return a whole file of `values` (x, y, z), of a type of numpy."""
    data = np.clip(np.round(values), 0, 120).astype("<" + kind).transpose().tobytes()
    sizes, spacing = " ".join(map(str, values.shape)), np.linalg.norm(affine[:3, :3], axis=0)
    names = META_TYPES if meta else NRRD_TYPES
    name = next(name for name, code in names.items() if code == kind)
    if meta:
        body = zlib.compress(data) if packed else data
        turn = (affine[:3, :3] / spacing).transpose().ravel()
        lines = {
            "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
            "CompressedData": str(packed), **({"CompressedDataSize": str(len(body))} if packed else {}),
            "TransformMatrix": " ".join(f"{value:.17g}" for value in turn),
            "Offset": " ".join(f"{value:.17g}" for value in affine[:3, 3]),
            "ElementSpacing": " ".join(f"{value:.17g}" for value in spacing), "DimSize": sizes,
            "ElementType": f"MET_{name}", "ElementDataFile": "LOCAL",
        }  # fmt: skip
        return Text(lines, body, True)
    axes = " ".join("(" + ",".join(f"{value:.17g}" for value in affine[:3, axis]) + ")" for axis in range(3))
    lines = {
        "type": name, "dimension": "3", "space": "left-posterior-superior", "sizes": sizes, "space directions": axes,
        "kinds": "domain domain domain", "endian": "little", "encoding": "gzip" if packed else "raw",
        "space origin": "(" + ",".join(f"{value:.17g}" for value in affine[:3, 3]) + ")",
    }  # fmt: skip
    return Text(lines, gzip.compress(data) if packed else data, False)


def text_bytes(rng: np.random.Generator, file: Nifti, meta: bool, change: str | None) -> tuple[bytes, str]:
    """Return a file of this image, changed in this way (None: not), and what must come of it."""
    names = META_TYPES if meta else NRRD_TYPES
    made = text_file(
        file.values, file.affine, str(rng.choice(list(names.values()))), meta=meta, packed=rng.random() < 0.5
    )
    if change is None:
        return made.build(), GOOD
    lines, verdict = made.lines, EITHER
    if change == "sizes":
        lines["DimSize" if meta else "sizes"] = str(rng.choice(SIZES))
        verdict = BAD
        if lines["DimSize" if meta else "sizes"] == "1 1 1":
            verdict = EITHER
    elif change == "numbers":
        names = (
            ("ElementSpacing", "Offset", "TransformMatrix")
            if meta
            else ("space origin", "space directions", "spacings")
        )
        value = str(rng.choice(NUMBERS))
        if not meta and rng.random() < 0.7:
            value = f"({','.join(value.split())})"
        name = str(rng.choice(names))
        lines[name] = " ".join([value] * 3) if name in ("TransformMatrix", "space directions") else value
    elif change == "type":
        kinds = (
            ("MET_FLOAT_ARRAY", "MET_NONE", "MET_LONG", "MET_ULONG_LONG", "x")
            if meta
            else ("block", "x", "int64", "ulonglong", "half")
        )
        lines["ElementType" if meta else "type"] = str(rng.choice(kinds))
    elif change == "channels":
        number = int(rng.choice([2, 3, 4]))
        lines["DimSize" if meta else "sizes"] = " ".join(
            map(str, (file.values.shape[0] // number, *file.values.shape[1:]))
        )
        if meta:
            lines["ElementNumberOfChannels"] = str(number)
            lines["ElementDataFile"] = lines.pop("ElementDataFile")  # it must be the last
        else:
            kind = {2: "complex", 3: "RGB-color", 4: "RGBA-color"}[number] if rng.random() < 0.5 else "vector"
            lines |= {"dimension": "4", "sizes": f"{number} {lines['sizes']}", "kinds": f"{kind} {lines['kinds']}"}
            lines["space directions"] = f"none {lines['space directions']}"
        verdict = BAD
    elif change == "line":
        name = str(rng.choice(list(lines)))
        if rng.random() < 0.5:
            del lines[name]
        else:
            lines[name] = str(
                rng.choice(
                    ["", "0", "-1", "zlib", "x" * 5000, "\0\0", "1 2 3 4 5 6 7 8 9 10 11 12", "True", "ascii", "big"]
                )
            )
    whole = made.build()
    if change == "truncated":
        return whole[: 64 * int(rng.integers(0, (len(whole) - 16) // 64))], BAD
    if change == "flipped":
        changed = bytearray(whole)
        changed[int(rng.integers(0, len(whole) - len(made.body)))] ^= int(rng.integers(1, 256))
        return bytes(changed), EITHER
    if change == "appended":
        return whole + bytes(rng.integers(0, 256, 100, dtype=np.uint8)), EITHER
    return whole, verdict


TEXT_CHANGES = ("sizes", "numbers", "type", "channels", "line", "truncated", "flipped", "appended")


def png_bytes(rng: np.random.Generator, values: np.ndarray, change: str | None) -> tuple[bytes, str]:
    """Return a picture of `values` (x, y), changed in this way (None: not), and what must come of it."""
    grey = np.clip(values.transpose(), 0, 255).astype(np.uint8)
    picture, verdict = Image.fromarray(grey), GOOD if change is None else EITHER
    if change == "mode":
        mode = str(rng.choice(["RGB", "RGBA", "LA", "P", "1", "I;16"]))
        picture = Image.fromarray(grey.astype(np.uint16) * 200) if mode == "I;16" else picture.convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    whole = stream.getvalue()
    if change == "truncated":
        return whole[: 64 * int(rng.integers(0, (len(whole) - 12) // 64 + 1))], BAD
    if change == "flipped":
        changed = bytearray(whole)
        changed[int(rng.integers(0, len(whole)))] ^= int(rng.integers(1, 256))
        return bytes(changed), EITHER
    if change == "sizes":
        width, height = (int(value) for value in rng.choice([0, 1, 16, 40000, 2**31 - 1, 2**32 - 1], 2))
        start = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
        return whole[:12] + start + struct.pack(">I", zlib.crc32(start)) + whole[33:], EITHER
    return whole, verdict


PNG_CHANGES = ("mode", "truncated", "flipped", "sizes")


def other_format(rng: np.random.Generator, ending: str) -> tuple[bytes, str]:
    """Return a file of another format, to be given an image's name."""
    stream = io.BytesIO()
    kind = rng.choice(["empty", "text", "json", "html", "zip", "noise", "dicom", "png", "gz", "zeros", "nrrd", "npy"])
    noise = bytes(rng.integers(0, 256, int(rng.integers(1, 3000)), dtype=np.uint8))
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.nii", noise)
    elif kind == "png":
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(stream, "PNG")
    elif kind == "npy":
        np.save(stream, np.zeros((6, 6, 6)))
    elif kind == "nrrd":
        stream.write(text_file(np.arange(216.0).reshape(6, 6, 6), np.eye(4), "f4", meta=False, packed=False).build())
    simple = {
        "empty": b"", "text": b"patient,scan\n1,T1\n", "json": b'{"EchoTime": 0.03}', "html": b"<html>404</html>" * 40,
        "noise": noise, "dicom": b"\0" * 128 + b"DICM" + noise, "gz": gzip.compress(noise), "zeros": b"\0" * 1000,
    }  # fmt: skip
    same = (kind, ending) in (("png", ".png"), ("nrrd", ".nrrd"), ("nrrd", ".mha"), ("png", ".mha"), ("png", ".nrrd"))
    return simple.get(str(kind), stream.getvalue()), EITHER if same else BAD
