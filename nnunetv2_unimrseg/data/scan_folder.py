"""A folder of scans: which files can be used, which cannot, and why.

Scans may be absent, so a scan that is there and goes unnoticed would pass for a missing modality. Therefore every file
whose name looks like a scan's is listed: as an image, or as unusable with the reason.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_unimrseg.errors import UserError

READ_BY_NNUNET = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")
OTHER_IMAGES = (".mhd", ".hdr", ".img", ".dcm", ".nhdr", ".mgz")

SIDECARS = (
    ".json", ".txt", ".log", ".bval", ".bvec", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".npz", ".pkl", ".md5", ".sha1",
    ".sha256", ".sha512",
)  # fmt: skip
"""Endings of files that lie beside scans and are no scans, as CASE_0000.json or CASE_0000.nii.gz.md5."""

_UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".download", ".aria2", ".tmp")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")


@dataclass(frozen=True)
class UnusableScan:
    """A file that looks like a scan and cannot be used as one.

    Attributes:
        path: where it lies.
        case: the case's name; None where the file's name does not tell.
        channel: its channel number; None where the name does not tell, and for labels.
        reason: why it cannot be used and what to do: the words that follow the path and a colon.
    """

    path: Path
    case: str | None
    channel: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class FolderContents:
    """What lies in a folder of scans; all sorted by name, as nnU-Net sorts.

    Attributes:
        images: regular files, or links to such, that end with the file ending and can be opened.
        unusable: files that look like scans and are none of `images`.
        duplicates: files of another ending or letter case that look like scans of a case and channel of `images`.
        hidden: hidden files that end with the file ending, as macOS leaves beside others (`._CASE_0000.nii.gz`).
        others: names of everything else that is not hidden; those of folders end with a slash.
    """

    images: tuple[Path, ...]
    unusable: tuple[UnusableScan, ...]
    duplicates: tuple[Path, ...]
    hidden: tuple[Path, ...]
    others: tuple[str, ...]


def split_name(path: str | Path, file_ending: str) -> tuple[str, int] | None:
    """Split a file's name into case and channel number: ("patient", 2) for `patient_0002.nii.gz`.

    Returns:
        None where the name has no `_XXXX` channel suffix before `file_ending`.
    """
    found = re.fullmatch(r"(.+)_(\d{4})" + re.escape(file_ending), Path(path).name)
    return (found[1], int(found[2])) if found else None


def scan_folder(
    folder: str | os.PathLike[str],
    file_ending: str,
    *,
    suffixed: bool = True,
    case: str | None = None,
    otherwise: str | None = None,
) -> FolderContents:
    """Look at every entry of a folder of scans or of labels.

    A name that ends with `file_ending` but leads to no file that can be opened is unusable. So is the name of a scan
    with another image ending or none, another letter case, or something after the ending (an unfinished download),
    unless a usable image of the same case and channel lies beside it. Sidecars are no scans, hidden files are never
    used.

    Args:
        folder: where to look; not below it.
        file_ending: of this dataset's images, as in dataset.json.
        suffixed: whether a file's name is CASE_XXXX and the ending, as of images; CASE and the ending, as of labels,
            otherwise.
        case: look at files of this case only, others are not even opened; None for all.
        otherwise: see `why_unusable`.

    Raises:
        UserError: when the folder is absent or cannot be listed.
    """
    folder = Path(folder)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {_in_words(error)}.") from error
    if case is not None:
        names = [name for name in names if name.startswith(f"{case}_" if suffixed else case)]
    visible = [name for name in names if not name.startswith(".")]
    images, unusable = [], []
    for name in (name for name in visible if name.endswith(file_ending)):
        path = folder / name
        reason = why_unusable(path, otherwise)
        if reason is None:
            images.append(path)
        else:
            unusable.append(UnusableScan(path, *_case_and_channel(name, file_ending, suffixed), reason))
    there = {_case_and_channel(image.name, file_ending, suffixed) for image in images}
    others, duplicates = [], []
    for name in (name for name in visible if not name.endswith(file_ending)):
        parts = _parts(name, file_ending, suffixed)
        if parts is None:
            others.append(f"{name}/" if (folder / name).is_dir() else name)
        elif parts[:2] in there:
            duplicates.append(folder / name)
        else:
            unusable.append(
                UnusableScan(folder / name, *parts[:2], _why_other_ending(folder / name, parts, file_ending, otherwise))
            )
    if case is not None:
        unusable = [scan for scan in unusable if scan.case == case]
    hidden = [folder / name for name in names if name.startswith(".") and name.endswith(file_ending)]
    unusable.sort(key=lambda scan: scan.path.name)
    return FolderContents(tuple(images), tuple(unusable), tuple(duplicates), tuple(hidden), tuple(others))


@dataclass(frozen=True)
class MisnamedScan:
    """A file that looks like a scan or a label of another file ending.

    Attributes:
        name: what it would be called with the right ending.
        reason: why it cannot be used and what to do: the words that follow the path and a colon.
    """

    name: str
    reason: str


def misnamed_scan(path: Path, file_ending: str) -> MisnamedScan | None:
    """Say how a file that looks like a scan of another ending should be called; None where it is no scan."""
    parts = _parts(path.name, file_ending, suffixed=False)
    if parts is None:
        return None
    return MisnamedScan(f"{parts[0]}{file_ending}", _why_other_ending(path, parts, file_ending, None))


def why_unusable(path: str | os.PathLike[str], otherwise: str | None = None) -> str | None:
    """Say why there is no regular file that can be opened at a path, and what to do; None where there is one.

    Args:
        path: of the file.
        otherwise: what to do where the file cannot be mended; by default to leave it out, or to remove the link.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not os.path.islink(path):
            return "there is no such file." if _is_absence(error) else f"cannot be reached: {_in_words(error)}."
        return _why_broken(path, error, otherwise or "remove the link")
    if stat.S_ISDIR(mode):
        return "is a folder, not an image file. Move the image out of it, or rename the folder."
    if not stat.S_ISREG(mode):
        return "is no regular file (but a socket, a pipe or a device). Put an image file in its place."
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return f"cannot be opened: {_in_words(error)}. Make it readable, or {otherwise or 'leave it out'}."
    return None


def _why_broken(link: str | os.PathLike[str], error: OSError, otherwise: str) -> str:
    target = os.path.realpath(link)
    if error.errno == errno.ELOOP:
        return f"is a link that leads back to itself (it points to {os.readlink(link)}). Replace or remove it."
    gone = "which does not exist" if _is_absence(error) else f"which cannot be reached: {_in_words(error)}"
    if "/annex/objects/" in target:
        return f"is a link to {target}, {gone}. Fetch the content with `git annex get`, or {otherwise}."
    return f"is a link to {target}, {gone}. Mount or copy what it points to, or {otherwise}."


def _is_absence(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


def _in_words(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission"
    return error.strerror or type(error).__name__


def _case_and_channel(name: str, file_ending: str, suffixed: bool) -> tuple[str | None, int | None]:
    """Return the case and the channel in a name with this file ending; None for what the name does not tell."""
    if not suffixed:
        return name.removesuffix(file_ending), None
    return split_name(name, file_ending) or (None, None)


def _parts(name: str, file_ending: str, suffixed: bool) -> tuple[str, int | None, str] | None:
    """Split the name of a scan with another ending into case, channel and ending; None where it is no scan's name."""
    if name.casefold().endswith(SIDECARS):
        return None
    ending = "|".join(re.escape(known) for known in (file_ending, *READ_BY_NNUNET, *OTHER_IMAGES))
    if not suffixed:
        found = re.fullmatch(rf"(?i:(.+?)((?:{ending}).*))", name, re.DOTALL)
        return (found[1], None, found[2]) if found else None
    found = re.fullmatch(rf"(?i:(.+)_(\d{{4}})(?!\d).*?((?:{ending}).*))", name, re.DOTALL)
    found = found or re.fullmatch(r"(.+)_(00\d\d)()", name, re.DOTALL)  # a folder or a file of DICOM
    return (found[1], int(found[2]), found[3]) if found else None


def _why_other_ending(path: Path, parts: tuple[str, int | None, str], file_ending: str, otherwise: str | None) -> str:
    """Say why a scan with another ending than this dataset's cannot be used, and what to do."""
    case, channel, ending = parts
    broken = why_unusable(path, otherwise)
    if ending.casefold().endswith(_UNFINISHED) and (broken is None or path.is_dir()):
        return f"is an unfinished download ('{ending[ending.rindex('.') :]}'). Finish it, or take it out of the folder."
    if broken is not None:
        return broken
    if not ending:
        return (
            f"has no ending, this dataset's files end with '{file_ending}'. Convert it, or take it out of the folder."
        )
    differs = f"ends with '{ending}', this dataset's files with '{file_ending}'."
    wanted = f"{case}{'' if channel is None else f'_{channel:04d}'}{file_ending}"
    if ending.casefold() == file_ending.casefold():
        return f"{differs} Rename it to {wanted}."
    if ending.casefold().startswith(file_ending.casefold()):
        if ending.casefold().removeprefix(file_ending.casefold()) in _COMPRESSED:
            return f"{differs} Unpack it into {wanted}."
        return f"{differs} Rename it to {wanted} if it is a complete image, or take it out of the folder."
    return (
        f"{differs} Convert it to {wanted} (do not just rename it: its format would stay the same), or take it out of "
        "the folder."
    )
