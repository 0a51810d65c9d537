"""The files of a case that is given by the names of its modalities, whatever the files are called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_unimrseg.data.scan_folder import READ_BY_NNUNET, split_name
from nnunetv2_unimrseg.errors import UserError, counted
from nnunetv2_unimrseg.modalities import Modalities

_SEPARATORS = "-_. "


class CaseFiles(list[str]):
    """The files of one case in channel order, which also says the case's name and each file's channel number.

    nnU-Net takes a case as a list of files, so this is a list.

    Args:
        name: the case's; "" where the files have no name in common.
        files: the file of each channel that is there.
    """

    def __init__(self, name: str, files: Mapping[int, str]) -> None:
        self.name = name
        self.channels = sorted(files)
        super().__init__(files[channel] for channel in self.channels)

    def restrict(self, chosen: Sequence[bool]) -> CaseFiles:
        """Return only the files of these channels."""
        pairs = zip(self.channels, self, strict=True)
        return CaseFiles(self.name, {channel: file for channel, file in pairs if chosen[channel]})


def name_channels(
    name: str | None, files: Mapping[str, str | os.PathLike[str]], modalities: Modalities, file_ending: str
) -> tuple[CaseFiles, list[str]]:
    """Find the channel of each file of a case.

    Args:
        name: the case's; None for what the file names have in common (see `common_name`).
        files: from the modality, by name (upper or lower case) or channel number, to its file. A modality of several
            channels has either one file, given by the modality's name, or a file for each, given by the channel's.
        modalities: the dataset's.
        file_ending: as in dataset.json.

    Returns:
        The case; and the problems: no file, an unknown modality, two files of one modality, a name that no file can
        have.
    """
    paths = [os.fspath(file) for file in files.values()]
    problems = []
    if name is None:
        name = common_name(paths, file_ending)
    elif not is_file_name(name):
        problems.append(f"case '{name}': this cannot be the name of a file. Give the case another name.")
    if not files:
        problems.append(f"case '{name}': no file. Give at least one of {', '.join(modalities)}.")
    found: dict[int, str] = {}
    for modality, path in zip(files, paths, strict=True):
        try:
            channel = modalities.channel(modality)
        except UserError as error:
            problems.append(f"case '{name}': {error}")
            continue
        if channel in found:
            problems.append(
                f"case '{name}': {modalities.channel_names[channel]} has two files, {found[channel]} and {path}. Give "
                "one."
            )
        found.setdefault(channel, path)
    return CaseFiles(name, found), problems


def collect_named_cases(
    cases: Mapping[str, Mapping[str, str | os.PathLike[str]]], modalities: Modalities, file_ending: str
) -> tuple[list[CaseFiles], list[str]]:
    """Find the channels of the files of several cases: `{"patient": {"T1": "a.nii.gz", "FLAIR": "b.nii.gz"}}`.

    Returns:
        The cases in their order; and the problems of all (see `name_channels`).

    Raises:
        UserError: when a case is no mapping.
    """
    wrong = [name for name, files in cases.items() if not isinstance(files, Mapping)]
    if wrong:
        raise UserError(
            f"The files of {counted(len(wrong), 'case')} are not given by modality, such as those of '{wrong[0]}'. "
            'Give {"CASE": {"MODALITY": "FILE"}}, or, without the name of the case, [{"MODALITY": "FILE"}].'
        )
    named = [name_channels(name, files, modalities, file_ending) for name, files in cases.items()]
    return [case for case, _ in named], [problem for _, found in named for problem in found]


def is_file_name(name: str) -> bool:
    """Whether a file that is not hidden can have this name."""
    return bool(name.strip()) and Path(name).name == name and not name.startswith(".") and "\0" not in name


def common_name(files: Sequence[str], file_ending: str) -> str:
    """Return what the names of a case's files have in common.

    This is the longest beginning that a separator (`-`, `_`, `.` or a space) follows in every name: `BraTS-1` for
    `BraTS-1-t1n.nii.gz` and `BraTS-1-t1c.nii.gz`. A single file's own name is taken, without its ending and `_XXXX`.
    Where the names have nothing in common, it is the name of the folder that all files lie in.

    Returns:
        "" where there is no such name.
    """
    names = sorted({_without_ending(file, file_ending) for file in files}, key=len)
    common = names[0] if len(names) == 1 else _common_beginning(names)
    folders = {Path(os.path.abspath(file)).parent for file in files}
    return common.strip(_SEPARATORS) or (folders.pop().name if len(folders) == 1 else "")


def _common_beginning(names: Sequence[str]) -> str:
    """Return the longest beginning of all names, shortest name first, that a separator follows in each."""
    shortest = names[0] if names else ""
    for end in range(len(shortest) - 1, 0, -1):
        if all(name.startswith(shortest[:end]) and name[end] in _SEPARATORS for name in names):
            return shortest[:end]
    return ""


def _without_ending(file: str, file_ending: str) -> str:
    split = split_name(file, file_ending)
    if split:
        return split[0]
    name = Path(file).name
    endings = (file_ending, *READ_BY_NNUNET)
    ending = next((ending for ending in endings if name.casefold().endswith(ending.casefold())), Path(name).suffix)
    return name[: len(name) - len(ending)]
