"""The cases of an input folder: which files they have, whether they can be used, what is missing in each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.data.case_files import CaseFiles, collect_named_cases, name_channels
from nnunetv2_unimrseg.data.reading import (
    assign_channels,
    case_name,
    check_intensities,
    no_suffix,
    read_case,
)
from nnunetv2_unimrseg.data.scan_folder import FolderContents, scan_folder, split_name, why_unusable
from nnunetv2_unimrseg.errors import UserError, counted, enumerated, listed
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.utils.file_lock import locked
from nnunetv2_unimrseg.utils.files import read_json, write_json
from nnunetv2_unimrseg.utils.threads import map_in_threads

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

FilePath = str | os.PathLike[str]
Files = FilePath | Sequence[Sequence[FilePath] | Mapping[str, FilePath]] | Mapping[str, Mapping[str, FilePath]]
"""A folder, or the files of each case: a list of them, `{modality: file}`, or both with `{case: {modality: file}}`."""

AVAILABILITY_NAME = "modalities.json"
"""The file beside the segmentations that says which modalities each case had."""


def find_cases(
    source: Files,
    modalities: Modalities,
    file_ending: str,
    chosen: Subset | None,
    *,
    tell: bool = True,
) -> tuple[list[list[str]], list[str]]:
    """Find the files of each case.

    Args:
        source: a folder, whose files are grouped by their names before the `_XXXX` channel suffix, in nnU-Net's
            order; or the files of each case, in a list or by modality.
        modalities: the dataset's modalities.
        file_ending: as in dataset.json.
        chosen: the only modalities whose files are wanted; None for all.
        tell: whether to print how many files were ignored.

    Returns:
        The files of each case; and the problems: a file without channel suffix, an unknown channel, a case without
        files, and what looks like a scan (of a wanted modality) and cannot be used as one (see `scan_folder`).

    Raises:
        UserError: when the folder is absent or cannot be read, or holds no usable file of that ending (then what looks
            like scans is listed); when the list is empty, or a flat list of files.
    """
    if isinstance(source, str | os.PathLike):
        wanted = None if chosen is None else modalities.expand(chosen)
        cases, problems = _list_folder(Path(source), modalities, file_ending, wanted, tell)
    else:
        cases, problems = _list_cases(source, modalities, file_ending)
        if not cases:
            raise UserError("There is no case to predict: the list of cases is empty.")
    if chosen is not None:
        restricted = [_restrict(files, chosen, modalities, file_ending) for files in cases if files]
        cases = [files for files, _ in restricted]
        problems += [problem for _, found in restricted for problem in found]
    return [files for files in cases if files], problems


def _list_cases(
    source: Sequence[Sequence[FilePath] | Mapping[str, FilePath]] | Mapping[str, Mapping[str, FilePath]],
    modalities: Modalities,
    file_ending: str,
) -> tuple[list[list[str]], list[str]]:
    if isinstance(source, Mapping):
        named, problems = collect_named_cases(source, modalities, file_ending)
        return list(named), problems
    source = list(source)
    _refuse_flat_list(source, file_ending)
    cases: list[list[str]] = []
    problems = []
    for number, files in enumerate(source):
        if isinstance(files, Mapping):
            case, found = name_channels(None, files, modalities, file_ending)
            cases.append(case)
            problems += found
        else:
            cases.append([str(file) for file in files])
            problems += [] if files else [f"case number {number}: no file."]
    return cases, problems


def _refuse_flat_list(source: Sequence[object], file_ending: str) -> None:
    flat = [os.fspath(entry) for entry in source if isinstance(entry, str | os.PathLike)]
    if not flat:
        return
    cases: dict[str, list[str]] = {}
    for file in flat:
        cases.setdefault(case_name([str(file)], file_ending), []).append(str(file))
    shown = ", ".join("[" + ", ".join(f'"{file}"' for file in files) + "]" for files in list(cases.values())[:2])
    raise UserError(
        f"The list of cases must hold a list with the files of each case; it holds {counted(len(flat), 'path')} "
        f"itself, such as {flat[0]}. Give [{shown}{', ...' if len(cases) > 2 else ''}], or the folder that holds them."
    )


def check_input_folder(folder: str | os.PathLike[str]) -> None:
    """Check that a folder of scans is there.

    Raises:
        UserError: when it is not, is a file, or is a link that leads nowhere.
    """
    folder = Path(folder)
    if folder.is_dir():
        return
    if folder.is_file():
        raise UserError(f"There is no input folder {folder}: it is a file. Give the folder that it lies in.")
    link = f" {folder} {why_unusable(folder)}" if folder.is_symlink() else ""
    raise UserError(f"There is no input folder {folder}.{link}")


def _list_folder(
    folder: Path, modalities: Modalities, file_ending: str, chosen: Sequence[bool] | None, tell: bool
) -> tuple[list[list[str]], list[str]]:
    check_input_folder(folder)
    contents = scan_folder(folder, file_ending)
    unusable = [
        str(scan)
        for scan in contents.unusable
        if chosen is None or scan.channel is None or scan.channel >= len(chosen) or chosen[scan.channel]
    ]
    if not contents.images:
        found = f"It holds: {_describe_contents(contents)}."
        if unusable:
            found = f"What looks like scans cannot be used:\n{listed(unusable)}"
        raise UserError(
            f"The input folder {folder} holds no file that ends with '{file_ending}', as this dataset's images do. "
            f"{found}"
        )
    if contents.duplicates and tell:
        print(describe_duplicates(contents.duplicates, file_ending))
    if contents.hidden and tell:
        print(f"Ignored {_describe_hidden(contents)}.")
    cases, unnamed = group_by_case(contents.images, modalities, file_ending)
    return list(cases.values()), [*unusable, *unnamed]


def describe_duplicates(duplicates: Sequence[Path], file_ending: str) -> str:
    """Say that files were left out because there is another of the same case and modality for each."""
    return (
        f"Left out {counted(len(duplicates), 'image')} of another ending, such as {duplicates[0].name}: there is a "
        f"'{file_ending}' file of the same case and modality."
    )


def group_by_case(
    images: Iterable[Path], modalities: Modalities, file_ending: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Group files by the case that their names (CASE_XXXX and the ending) say.

    Returns:
        The files of each case by its name, in the order of the names; and a problem for each file without channel
        suffix.
    """
    cases: dict[str, list[str]] = {}
    problems = []
    for path in images:
        split = split_name(path, file_ending)
        if split is None:
            problems.append(no_suffix(str(path), modalities, file_ending))
        else:
            cases.setdefault(split[0], []).append(str(path))
    return dict(sorted(cases.items())), problems


def _describe_contents(contents: FolderContents) -> str:
    """List what a folder without usable images holds."""
    words = enumerated(sorted([*contents.others, *(scan.path.name for scan in contents.unusable)]), 5)
    if not contents.hidden:
        return words or "no files"
    hidden = f"{_describe_hidden(contents)}, which {'is' if len(contents.hidden) == 1 else 'are'} ignored"
    return f"{words}, and {hidden}" if words else f"only {hidden}"


def _describe_hidden(contents: FolderContents) -> str:
    such_as = "" if len(contents.hidden) == 1 else "such as "
    return f"{counted(len(contents.hidden), 'hidden file')}, {such_as}{contents.hidden[0].name}"


def _restrict(
    files: list[str], chosen: Subset, modalities: Modalities, file_ending: str
) -> tuple[list[str], list[str]]:
    """Return the files of a case that are of the chosen modalities, and the problems."""
    wanted = modalities.expand(chosen)
    channels, problems = assign_channels(files, modalities, file_ending)
    if channels is None:
        return [], problems
    name = case_name(files, file_ending)
    kept: list[str]
    if isinstance(files, CaseFiles):
        kept, numbered = files.restrict(wanted), list(channels)
    else:
        kept = [file for file, channel in zip(files, channels, strict=True) if wanted[channel]]
        splits = [split_name(file, file_ending) for file in files]
        numbered = [-1 if split is None else split[1] for split in splits]
    if not kept:
        problems.append(
            f"case '{name}': none of the modalities asked for ({modalities.describe(chosen)}); it has "
            f"{modalities.describe(modalities.collapse([n in channels for n in range(modalities.num_channels)]))}."
        )
    if channels != numbered:
        problems.append(
            f"case '{name}': to use only some of its modalities, the '_XXXX' suffix of each file must say which one "
            f"it is; found {', '.join(files)}."
        )
    return kept, problems


def check_cases(
    cases: Sequence[Sequence[str]],
    reader: BaseReaderWriter,
    modalities: Modalities,
    file_ending: str,
    *,
    plans: tuple[PlansManager, ConfigurationManager] | None = None,
    chosen: Subset | None = None,
    problems: Sequence[str] = (),
    show_progress: bool = True,
) -> list[Subset]:
    """Read and check all cases, several at a time, before anything is computed.

    Args:
        cases: the files of each case, as `find_cases` returns them.
        reader: an instance of the plans' reader.
        modalities: the dataset's modalities.
        file_ending: as in dataset.json.
        plans: with which the cases will be preprocessed; None skips the check whether they can be.
        chosen: the only modalities that may be used; None for all.
        problems: found before, which are listed first.
        show_progress: whether to show a progress bar.

    Returns:
        The available modalities of each case; a file of one constant intensity counts as missing.

    Raises:
        UserError: one error that lists every problem of every case.
    """
    check = partial(_check_case, reader, modalities, file_ending, plans, chosen)
    checked = map_in_threads(check, cases, "Checking cases", show_progress=show_progress)
    raise_for_input([*problems, *(problem for _, of_case in checked for problem in of_case)])
    return [available for available, _ in checked]


def _check_case(
    reader: BaseReaderWriter,
    modalities: Modalities,
    file_ending: str,
    plans: tuple[PlansManager, ConfigurationManager] | None,
    chosen: Subset | None,
    files: Sequence[str],
) -> tuple[Subset, list[str]]:
    """Return the available modalities of a case, and its problems."""
    available: Subset = ()
    read, problems = read_case(files, reader, modalities, file_ending)
    if read is not None:
        available, problems = check_intensities(read.image, modalities)
    unwanted = [present and not wanted for present, wanted in zip(available, chosen or available, strict=False)]
    if any(unwanted):
        problems.append(
            f"{files[0]} also holds {modalities.describe(unwanted)}, which was not asked for. Split it into one file a "
            "modality."
        )
    if plans is not None and read is not None and not problems:
        from nnunetv2_unimrseg.data.preprocessing import preprocessing_problems

        problems += preprocessing_problems(read.image, read.properties, available, modalities, *plans, read.files)
    name = case_name(files, file_ending)
    return available, [f"case '{name}': {problem}" for problem in problems]


def naming_problems(cases: Sequence[Sequence[str]], file_ending: str) -> list[str]:
    """Find the cases that an output folder could not tell apart, or that have no name."""
    problems = []
    owner: dict[str, str] = {}
    for files in cases:
        name = case_name(files, file_ending)
        if isinstance(files, CaseFiles) and not files.name:
            problems.append(
                f"{', '.join(files)}: these names have nothing in common and do not lie in one folder, so their "
                "segmentation's name is not known. Give the case a name: --case, or {name: files}."
            )
        elif not isinstance(files, CaseFiles) and split_name(files[0], file_ending) is None:
            problems.append(
                f"{files[0]}: the name has no channel suffix, so its segmentation's name is not known. Name it "
                f"CASE_XXXX{file_ending}, or give one output file a case instead of a folder."
            )
        elif name in owner:
            problems.append(f"{owner[name]} and {files[0]} would both be segmented into '{name}{file_ending}'.")
        owner.setdefault(name, files[0])
    return problems


def raise_for_input(problems: Sequence[str]) -> None:
    """Raise one UserError that lists the problems of an input, if there are any."""
    if problems:
        raise UserError(f"The input has {counted(len(problems), 'problem')}; nothing was computed:\n{listed(problems)}")


def describe_availability(available: Subset, modalities: Modalities) -> dict[str, list[str]]:
    """Return the names of a case's modalities: `{"available": [...], "missing": [...]}`."""
    pairs = list(zip(modalities, available, strict=True))
    return {
        "available": [name for name, present in pairs if present],
        "missing": [name for name, present in pairs if not present],
    }


def print_availability(
    cases: Mapping[str, Mapping[str, Sequence[str]]], remarks: Mapping[str, str] | None = None
) -> None:
    """Print one line a case, with a remark after it where there is one."""
    for name, modalities in cases.items():
        missing = f", missing: {', '.join(modalities['missing'])}" if modalities["missing"] else ", nothing missing"
        print(f"{name}: available: {', '.join(modalities['available'])}{missing}{(remarks or {}).get(name, '')}")


def write_availability(folder: Path, cases: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Write `modalities.json` into a folder, in one step; other cases that an existing one lists are kept.

    Raises:
        UserError: when an existing file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / AVAILABILITY_NAME
    with locked(path):
        before = read_json(path) if path.exists() else {}
        merged = {**before, **cases}
        write_json(path, {name: merged[name] for name in sorted(merged)})
