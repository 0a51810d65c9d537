"""Checks that an image file is whole and holds finite numbers.

SimpleITK does not: it reads truncated NIfTI and GIPL files and makes up what is lacking, and it turns NaN and Inf in
NIfTI files into zeros.
"""

from __future__ import annotations

import gzip
import logging
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from nnunetv2_unimrseg.data.itk_formats import meta_problem, nrrd_problem
from nnunetv2_unimrseg.errors import in_one_line
from nnunetv2_unimrseg.utils.files import file_problem, problem_or_failure

if TYPE_CHECKING:
    import SimpleITK
    from nibabel.nifti1 import Nifti1Header
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

_CHUNK = 1 << 20
_LONGEST_HEADER = 540
_SMALLEST_OFFSETS = {348: 352, 540: 544}
_MOST_DIMENSIONS = 7
_GIPL_HEADER_BYTES = 256
_BYTES_OF_TYPE = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1536: 16}
"""NIfTI's codes of real numbers -> bytes of one. ITK and nibabel go by the code and ignore `bitpix`."""

_OTHER_TYPES = {1: "single bits", 128: "RGB colours", 2304: "RGBA colours"} | dict.fromkeys(
    (32, 1792, 2048), "complex numbers"
)
"""NIfTI's codes of other voxels than real numbers."""


def image_problem(path: str | Path) -> str | None:
    """Return why an image file cannot be used (truncated, damaged, empty, NaN or Inf), or None.

    NIfTI files are read to their end, against the checksum where they are compressed; so are compressed MetaImage and
    NRRD files. Of uncompressed ones, and of GIPL and TIFF files, the length is checked. PNG files are decoded. An image
    of several values a voxel (colours, vectors, complex numbers) is no scan. Files of other formats are left to their
    readers, which raise where one is truncated.
    """
    path = Path(path)
    return file_problem(path) or _by_ending(_CHECKS, path)


def written_image_problem(path: str | Path) -> str | None:
    """Return why an image that was written is not whole, or None. The file is read to its end in every format."""
    path = Path(path)
    return problem_or_failure(lambda: image_problem(path) or _by_ending(_DECODERS, path))


def segmentation_problem(path: str | Path, reader: BaseReaderWriter, expected: np.ndarray | None = None) -> str | None:
    """Return why a segmentation that was written is not whole, or None. The file is read to its end.

    Args:
        path: the file.
        reader: of the dataset.
        expected: `(X, Y, Z)`, what must be in it; None for anything.
    """

    def find_problem() -> str | None:
        if problem := image_problem(path):
            return problem
        found = reader.read_seg(str(path))[0][0]
        return None if expected is None or np.array_equal(found, expected) else "it reads back otherwise"

    return problem_or_failure(find_problem)


def _by_ending(functions: Mapping[tuple[str, ...], Callable[[Path], str | None]], path: Path) -> str | None:
    """Call the function for a file's ending, if there is one."""
    name = path.name.lower()
    return next((function(path) for endings, function in functions.items() if name.endswith(endings)), None)


def nifti_problem(path: str | Path) -> str | None:
    """Return what is wrong with a `.nii` or `.nii.gz` file, or None; see `image_problem`."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if compressed else file
        try:
            return _stream_problem(stream)
        except (EOFError, OSError, OverflowError, ValueError, zlib.error) as error:
            return f"it is truncated or damaged: {error}"


def _stream_problem(stream: IO[bytes] | gzip.GzipFile) -> str | None:
    start = stream.read(_LONGEST_HEADER)
    header = _read_header(start)
    if header is None:
        return f"it is truncated or no NIfTI file: no NIfTI header in its first {len(start)} bytes"
    dimensions = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : 1 + max(dimensions, 0)]]
    if not 1 <= dimensions <= _MOST_DIMENSIONS or min(sizes) < 1:
        return f"its header is damaged: {dimensions} dimensions of the sizes {sizes}"
    offset = float(header["vox_offset"])
    if not 0 <= offset < math.inf:
        return f"its header is damaged: its voxels begin at byte {offset}"
    code = int(header["datatype"])
    if code not in _BYTES_OF_TYPE:
        kind_in_words = _OTHER_TYPES.get(code, "of a type that does not exist")
        return f"its voxels are {kind_in_words} (NIfTI type {code}), no intensities"
    if math.prod(sizes[4:]) > 1:
        return f"it has {dimensions} dimensions, of the sizes {sizes}; a scan has three"
    length = math.prod(sizes) * _BYTES_OF_TYPE[code]
    kind = _float_type(header)
    stream.seek(max(int(offset), _SMALLEST_OFFSETS[int(header["sizeof_hdr"])]))
    left, all_finite = length, True
    while chunk := stream.read(_CHUNK):
        values = chunk[: max(left, 0)]
        left -= len(chunk)
        all_finite = all_finite and _all_finite(values, kind)
    if left > 0:
        return f"it is truncated: {left} of {length} bytes of voxels are lacking"
    return None if all_finite else "it holds NaN or infinite values"


def _read_header(start: bytes) -> Nifti1Header | None:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    classes: tuple[type[Nifti1Header], ...] = (Nifti1Header, Nifti2Header)
    for header_class in classes:
        if header_class.may_contain_header(start):
            header = header_class(start[: header_class.template_dtype.itemsize], check=False)
            is_single_file = bytes(header["magic"])[:3] in (b"n+1", b"n+2")
            return header if is_single_file and int(header["sizeof_hdr"]) in _SMALLEST_OFFSETS else None
    return None


def _float_type(header: Nifti1Header) -> np.dtype | None:
    """Return the type of the voxels where it can hold NaN."""
    from nibabel.spatialimages import HeaderDataError

    try:
        kind = header.get_data_dtype()
    except HeaderDataError:
        return None
    return kind if np.issubdtype(kind, np.floating) else None


def _all_finite(values: bytes, kind: np.dtype | None) -> bool:
    if kind is None:
        return True
    return bool(np.isfinite(np.frombuffer(values[: len(values) // kind.itemsize * kind.itemsize], kind)).all())


def read_header(path: str | Path) -> SimpleITK.ImageFileReader | None:
    """Read the header of an image without its voxels; None where SimpleITK cannot."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


def _gipl_problem(path: Path) -> str | None:
    import SimpleITK

    header = read_header(path)
    if header is None:  # the reader will say so
        return None
    bytes_per_voxel = SimpleITK.Image([1, 1], header.GetPixelID()).GetSizeOfPixelComponent()
    length = _GIPL_HEADER_BYTES + math.prod(header.GetSize()) * bytes_per_voxel
    lacking = length - path.stat().st_size
    return f"it is truncated: {lacking} of {length} bytes are lacking" if lacking > 0 else None


def _meta_problem(path: Path) -> str | None:
    return meta_problem(path) or _components_problem(path)


def _nrrd_problem(path: Path) -> str | None:
    return nrrd_problem(path) or _components_problem(path)


def _components_problem(path: Path) -> str | None:
    import SimpleITK

    header = read_header(path)
    if header is None:  # the reader will say so
        return None
    components, kind = header.GetNumberOfComponents(), SimpleITK.GetPixelIDValueAsString(header.GetPixelID())
    if components == 1 and "complex" not in kind:
        return None
    return f"it holds {components} values a voxel ({kind}), as colour images do; a scan has one"


def _decode_with_simpleitk(path: Path) -> None:
    import SimpleITK

    SimpleITK.ReadImage(str(path))


def _decode_with_tifffile(path: Path) -> None:
    import tifffile

    tifffile.imread(path)


def _decode_with_pillow(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()


_DECODERS: dict[tuple[str, ...], Callable[[Path], str | None]] = {
    (".mha", ".nrrd"): _decode_with_simpleitk,
    (".tif", ".tiff"): _decode_with_tifffile,
    (".bmp",): _decode_with_pillow,
}


class _Messages(logging.Handler):
    """Keeps the messages that this thread logs."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())


def _tiff_problem(path: Path) -> str | None:
    """tifffile reads the pages that are left of a truncated file, and only logs that there should be more."""
    import tifffile

    handler = _Messages()
    log = logging.getLogger("tifffile")
    log.addHandler(handler)
    try:
        with tifffile.TiffFile(path) as file:
            pages, size = list(file.pages), file.filehandle.size
            ends = [sum(end) for page in pages for end in zip(page.dataoffsets, page.databytecounts, strict=True)]
    except Exception as error:  # whatever tifffile raises for a damaged file
        return f"it is truncated or damaged: {in_one_line(error)}"
    finally:
        log.removeHandler(handler)
    if max(ends, default=0) > size:
        return f"it is truncated: {max(ends) - size} bytes of voxels are lacking"
    broken = next((message for message in handler.messages if "invalid" in message), None)
    return f"it is truncated or damaged: {broken}" if broken else None


_CHECKS: dict[tuple[str, ...], Callable[[Path], str | None]] = {
    (".nii", ".nii.gz"): nifti_problem,
    (".mha",): _meta_problem,
    (".nrrd",): _nrrd_problem,
    (".gipl",): _gipl_problem,
    (".tif", ".tiff"): _tiff_problem,
}
