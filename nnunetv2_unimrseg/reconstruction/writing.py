"""Writing reconstructed images in the formats of nnU-Net's readers, in the geometry of an image of the same case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_unimrseg.data.whole_image import written_image_problem
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.utils.files import whole_file, write_json

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

LONGEST_DESCRIPTION = 79
"""Characters in the description field of a NIfTI header."""

Properties = Mapping[str, Any]
_INTEGER_FORMATS = (".png", ".bmp")


def header_description(inputs: str, *, intensities: bool) -> str:
    """Return the text for a file's header: that it is synthetic, its units, and the modalities it was made from.

    Args:
        inputs: the available modalities, as in "T1+FLAIR".
        intensities: whether in raw intensities instead of normalised units.
    """
    units = "training-set intensities" if intensities else "normalised units"
    text = f"SYNTHETIC (UniMRSeg), {units}, from {inputs}"
    return text.encode("ascii", "replace").decode()[:LONGEST_DESCRIPTION]


def check_format(reader: type[BaseReaderWriter], file_ending: str, *, intensities: bool) -> None:
    """Check that images of a dataset can be written.

    Raises:
        UserError: for a reader for which there is no writer here; for normalised units in a format of integers only.
    """
    if reader.__name__ not in _WRITERS:
        raise UserError(
            f"Images of the reader {reader.__name__} cannot be written, only those of "
            f"{', '.join(_WRITERS)}. Convert the dataset to one of their formats."
        )
    if file_ending.lower() in _INTEGER_FORMATS and not intensities:
        raise UserError(
            f"Normalised units are floating-point numbers, which {file_ending} files cannot hold. Use --intensities, "
            "which maps them to the training images' intensities."
        )


def write_image(
    path: Path,
    image: np.ndarray,
    reader: type[BaseReaderWriter],
    properties: Properties,
    description: str,
    like: Path,
) -> None:
    """Write an image whole or not at all (see `whole_file`).

    Args:
        path: what to write; an existing file is replaced.
        image: (X, Y, Z) as the reader's arrays are (2D: (1, Y, X)). It is written as float32; for `.png` and `.bmp` it
            is rounded and clipped to the integer type of `like`.
        reader: the plans' reader.
        properties: the reader's, of the file that gives the geometry.
        description: for the header, at most `LONGEST_DESCRIPTION` ASCII characters; `.bmp` and `.gipl` cannot hold it.
        like: the file that gives the geometry.

    Raises:
        UserError: when it cannot be written or is not whole afterwards; then what was there before is unchanged.
    """
    with whole_file(path, written_image_problem, failures=(RuntimeError,)) as temporary:
        _WRITERS[reader.__name__](temporary, image.astype(np.float32, copy=False), properties, description, like)
    if reader.__name__ == "Tiff3DIO":
        _write_tiff_spacing(path, properties)


def _write_with_simpleitk(path: Path, image: np.ndarray, properties: Properties, description: str, like: Path) -> None:
    import SimpleITK as sitk

    geometry = properties["sitk_stuff"]
    itk_image = sitk.GetImageFromArray(image[0] if len(geometry["spacing"]) == 2 else image)
    itk_image.SetSpacing(geometry["spacing"])
    itk_image.SetOrigin(geometry["origin"])
    itk_image.SetDirection(geometry["direction"])
    if "original_orientation" in geometry:
        itk_image = sitk.DICOMOrient(itk_image, geometry["original_orientation"])
    itk_image.SetMetaData("ITK_FileNotes", description)  # becomes `descrip` of a NIfTI header
    sitk.WriteImage(itk_image, str(path), True)


def _write_with_nibabel(path: Path, image: np.ndarray, properties: Properties, description: str, like: Path) -> None:
    import nibabel
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    geometry = properties["nibabel_stuff"]
    original = geometry["original_affine"]
    nifti = nibabel.Nifti1Image(image.transpose(2, 1, 0), geometry.get("reoriented_affine", original))
    if "reoriented_affine" in geometry:
        nifti = nifti.as_reoriented(ornt_transform(axcodes2ornt("RAS"), io_orientation(original)))
    source: Any = nibabel.load(like).header
    for form in ("qform", "sform"):
        code = int(source[f"{form}_code"])
        getattr(nifti, f"set_{form}")(getattr(source, f"get_{form}")() if code else None, code)
    nifti.header.set_xyzt_units(*source.get_xyzt_units())
    nifti.header["descrip"] = description.encode()
    nibabel.save(nifti, path)


def _write_with_tifffile(path: Path, image: np.ndarray, properties: Properties, description: str, like: Path) -> None:
    import tifffile

    tifffile.imwrite(path, image, compression="zlib", description=description, metadata=None)


def _write_tiff_spacing(path: Path, properties: Properties) -> None:
    """Write the file from which nnU-Net's reader of TIFF takes the spacing, unless it is there already."""
    spacing = path.with_name(path.name[: -len(f"_0000{path.suffix}")] + ".json")
    if not spacing.exists():
        write_json(spacing, {"spacing": [float(value) for value in properties["spacing"]]})


def _write_with_pillow(path: Path, image: np.ndarray, properties: Properties, description: str, like: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = image[0]
    if path.suffix.lower() not in _INTEGER_FORMATS:
        Image.fromarray(image).save(path, description=description)
        return
    with Image.open(like) as source:
        integers = np.uint16 if np.asarray(source).dtype.itemsize > 1 else np.uint8
    image = np.clip(np.rint(image), 0, np.iinfo(integers).max).astype(integers)
    notes = PngInfo()
    notes.add_text("Description", description)
    Image.fromarray(image).save(path, pnginfo=notes)  # Pillow passes over it for .bmp


_WRITERS = {
    "SimpleITKIO": _write_with_simpleitk,
    "SimpleITKIOWithReorient": _write_with_simpleitk,
    "NibabelIO": _write_with_nibabel,
    "NibabelIOWithReorient": _write_with_nibabel,
    "Tiff3DIO": _write_with_tifffile,
    "NaturalImage2DIO": _write_with_pillow,
}
