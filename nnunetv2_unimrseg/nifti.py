"""Is a NIfTI file whole, and are its values numbers?

SimpleITK does not say: it reads a truncated NIfTI file, filling what is lacking, and turns NaN and Inf into zeros.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 20
_LONGEST_HEADER = 540
_FLOATS = {16: "f4", 64: "f8"}


class _Header(NamedTuple):
    offset: int
    length: int
    float_type: str | None


def nifti_problem(path: str | Path) -> str | None:
    """Return what is wrong with a `.nii` or `.nii.gz` file (truncated, damaged, NaN or Inf), or None.

    A compressed file is decompressed to its end, so that its checksum is verified too.
    """
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if compressed else file
        try:
            start = stream.read(_LONGEST_HEADER)
            header = _read_header(start)
            if header is None:
                return f"it is truncated or no NIfTI file: no NIfTI header in its first {len(start)} bytes"
            stream.seek(header.offset)
            left, all_finite = header.length, True
            while chunk := stream.read(_CHUNK):
                values = chunk[: max(left, 0)]
                left -= len(chunk)
                all_finite = all_finite and _all_finite(values, header.float_type)
        except (EOFError, OSError, zlib.error) as error:
            return f"it is truncated or damaged: {error}"
    if left > 0:
        return f"it is truncated: {left} of {header.length} bytes of voxels are lacking"
    return None if all_finite else "it holds NaN or infinite values"


def _all_finite(values: bytes, float_type: str | None) -> bool:
    if float_type is None:
        return True
    size = np.dtype(float_type).itemsize
    return bool(np.isfinite(np.frombuffer(values[: len(values) // size * size], float_type)).all())


def _read_header(start: bytes) -> _Header | None:
    for order in "<>":
        if start[:4] == struct.pack(f"{order}i", 348) and len(start) >= 348 and start[344:347] == b"n+1":
            dim = struct.unpack_from(f"{order}8h", start, 40)
            kind, bits = struct.unpack_from(f"{order}2h", start, 70)
            offset = struct.unpack_from(f"{order}f", start, 108)[0]
        elif start[:4] == struct.pack(f"{order}i", 540) and len(start) >= 540 and start[4:7] == b"n+2":
            dim = struct.unpack_from(f"{order}8q", start, 16)
            kind, bits = struct.unpack_from(f"{order}2h", start, 12)
            offset = struct.unpack_from(f"{order}q", start, 168)[0]
        else:
            continue
        if not (1 <= dim[0] <= 7 and 0 <= offset < math.inf):
            return None
        voxels = math.prod(max(size, 1) for size in dim[1 : 1 + dim[0]])
        float_type = order + _FLOATS[kind] if kind in _FLOATS else None
        return _Header(int(offset), (voxels * bits + 7) // 8, float_type)
    return None
