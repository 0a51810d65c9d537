"""Checks `.mha` and `.nrrd` files before ITK reads them, and says in one line why a reader has failed.

ITK, on which SimpleITK builds, cannot be given a damaged file. Where the compressed voxels of an `.mha` file are
damaged or too few, it returns uninitialised memory. It allocates the sizes that a damaged header names before it looks
at the file. Where it complains of a long line in the header of an `.nrrd` file, it overruns a buffer and Python ends.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20
_LONGEST_LINE = 1000
"""The most characters of a line of an `.nrrd` header, except for comments and free fields."""

_MOST_COMPRESSED = 1100
"""The most bytes that zlib makes of one."""

_META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
    "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_NRRD_NAMES = {
    1: "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t",
    2: "short, short int, signed short, signed short int, int16, int16_t, ushort, unsigned short, unsigned short int, "
    "uint16, uint16_t",
    4: "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float",
    8: "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t, ulonglong, "
    "unsigned long long, unsigned long long int, uint64, uint64_t, double",
}
_NRRD_BYTES = {name: size for size, names in _NRRD_NAMES.items() for name in names.split(", ")}

_LONGEST_REASON = 300
_ITK_PREFIX = re.compile(r"(itk::|sitk::|ITK )ERROR: (\w+\((0x)?[0-9a-fA-F]+\): )?")
_EXPLANATIONS = {
    "Unable to determine ImageIO reader": "SimpleITK does not know its format (of NIfTI it knows NIfTI-1, not NIfTI-2)",
    "does not match matrix dimensions": "it has not the three dimensions that the reader of the plans needs",
    "SVD did not converge": "the geometry in its header is not finite",
    "Cannot drop coordinates": "the geometry in its header is singular",
}
"""Parts of messages of SimpleITK, numpy and nibabel -> what they mean here."""


def meta_problem(path: Path) -> str | None:
    """Return what is wrong with an `.mha` file, or None; its reader judges what is not understood here."""
    with path.open("rb") as file:
        header = dict(_meta_fields(file))
        if header.get("ElementDataFile") != "LOCAL":
            return None if "ElementDataFile" in header else "its header is damaged: it names no voxels"
        kind = header.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
        voxel = _META_BYTES.get(kind, 0) * _whole(header.get("ElementNumberOfChannels", "1"))
        sizes = [_whole(size) for size in header.get("DimSize", "").split()]
        if not voxel or not sizes or min(sizes) < 1 or len(sizes) != _whole(header.get("NDims", "")):
            more = {"ElementNumberOfChannels"} & header.keys()
            return _damaged(header, ("NDims", "DimSize", "ElementType", *more))
        needed = voxel * math.prod(sizes)
        if _is_true(header.get("CompressedData", "False")):
            stored = _whole(header.get("CompressedDataSize", ""))
            if stored < 1:
                return _damaged(header, ("CompressedData", "CompressedDataSize"))
            return _compressed_problem(_inflated(file, stored), needed, path)
        if not _is_true(header.get("BinaryData", "False")):
            return _too_large(needed // voxel, path)
        return _too_large(needed, path) if "HeaderSize" in header else _raw_problem(file, needed)


def nrrd_problem(path: Path) -> str | None:
    """Return what is wrong with an `.nrrd` file, or None; its reader judges what is not understood here."""
    header: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(_LONGEST_LINE).startswith(b"NRRD"):
            return "it is no NRRD file: it does not begin with NRRD"
        for line in _lines(file):
            name, colon, value = line.partition(":")
            is_free = line.startswith("#") or value.startswith("=") or name == "content"
            if len(line) > _LONGEST_LINE and not is_free:
                return f"its header is damaged: it has a line of {len(line)} characters"
            if colon and not is_free:
                header[name.strip().lower().replace(" ", "")] = value.strip()
        if "datafile" in header:
            return None
        voxel = _NRRD_BYTES.get(header.get("type", "").lower(), 0)
        sizes = [_whole(size) for size in header.get("sizes", "").split()]
        if not voxel or not sizes or min(sizes) < 1:
            return _damaged(header, ("type", "sizes"))
        needed = voxel * math.prod(sizes)
        encoding = header.get("encoding", "").lower()
        if {"lineskip", "byteskip"} & header.keys() or encoding not in ("raw", "gz", "gzip"):
            return _too_large(needed, path)
        if encoding == "raw":
            return _raw_problem(file, needed)
        return _compressed_problem(_unpacked(file), needed, path)


def _meta_fields(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    for line in _lines(file):
        name, sign, value = line.partition("=")
        if sign:
            yield name.strip(), value.strip()
        if name.strip() == "ElementDataFile":
            return


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a header up to an empty one; the file then stands behind it."""
    while file.tell() < _LONGEST_HEADER:
        line = file.readline(_LONGEST_HEADER)
        if not line.strip(b"\r\n"):
            return
        yield line.decode("latin-1").rstrip("\r\n")


def _whole(text: str) -> int:
    """Return a number of ASCII digits, 0 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")


def _damaged(header: Mapping[str, str], names: tuple[str, ...]) -> str:
    found = ", ".join(f"{name} '{header[name][:60]}'" if name in header else f"no {name}" for name in names)
    return f"its header is damaged, or of an image that is no scan: it has {found}"


def _too_large(needed: int, path: Path) -> str | None:
    size = path.stat().st_size
    if needed <= size * _MOST_COMPRESSED:
        return None
    return f"its header is damaged: it promises {needed} voxels or bytes, more than a file of {size} bytes can hold"


def _raw_problem(file: IO[bytes], needed: int) -> str | None:
    start = file.tell()
    lacking = needed - (file.seek(0, 2) - start)
    return f"it is truncated: {lacking} of {needed} bytes of voxels are lacking" if lacking > 0 else None


def _compressed_problem(chunks: Iterator[int], needed: int, path: Path) -> str | None:
    if problem := _too_large(needed, path):
        return problem
    try:
        lacking = needed - sum(chunks)
    except (EOFError, OSError, zlib.error) as error:
        return f"it is truncated or damaged: {error}"
    return f"it is truncated: {lacking} of {needed} bytes of voxels are lacking" if lacking > 0 else None


def _inflated(file: IO[bytes], stored: int) -> Iterator[int]:
    """Yield how many bytes each chunk decompresses to; zlib verifies the checksum at the end."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    while stored > 0 and not stream.eof and (chunk := file.read(min(stored, _CHUNK))):
        stored -= len(chunk)
        while chunk and not stream.eof:
            yield len(stream.decompress(chunk, _CHUNK))
            chunk = stream.unconsumed_tail
    if not stream.eof:
        raise EOFError("the compressed voxels end too early")


def _unpacked(file: IO[bytes]) -> Iterator[int]:
    with gzip.GzipFile(fileobj=file) as stream:
        while chunk := stream.read(_CHUNK):
            yield len(chunk)


def explain_failure(error: BaseException) -> str:
    """Say in one short line why a reader failed; ITK and NRRD give the reason in one of several lines."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    known = next((words for part, words in _EXPLANATIONS.items() if part in str(error)), None)
    if known is not None:
        return known
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "SimpleITK" in lines[0]:
        # a line "Reason:" is the operating system's last error, which may have nothing to do with this one
        lines = [_ITK_PREFIX.sub("", line) for line in lines[1:] if not line.startswith("Reason:")] or lines
        lines = [line for line in lines[:-1] if not line.startswith("[nrrd]")][:1] + lines[-1:]
    reason = " ".join(re.sub(r"^\[nrrd\] \w+: *", "", line) for line in lines) or type(error).__name__
    reason = re.sub(r"\b(itk|CommonEnums|IOComponent)::", "", reason)
    reason = "".join(letter if letter.isprintable() else "?" for letter in reason)
    return f"{reason[:_LONGEST_REASON]} ..." if len(reason) > _LONGEST_REASON else reason.rstrip(".: ")
