"""The cases of an input folder: which files they have, whether they can be used, what is missing in each."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.folders import read_json, write_json
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.reading import (
    assign_channels,
    case_name,
    check_intensities,
    no_suffix,
    read_case,
    split_name,
)

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

REPORT_NAME = "modalities.json"
"""The file beside the segmentations that says which modalities each case had."""

_ABANDONED_AFTER_S = 60.0
"""A lock that stays the same for so long is of a process that died."""


def find_cases(
    source: str | os.PathLike | Sequence[Sequence[str | os.PathLike]],
    modalities: Modalities,
    file_ending: str,
    chosen: Subset | None,
    problems: list[str],
) -> list[list[str]]:
    """Find the files of each case.

    Args:
        source: a folder, whose files are grouped by their names before the `_XXXX` channel suffix, in nnU-Net's
            order; or a list with the files of each case.
        modalities: the dataset's modalities.
        file_ending: as in dataset.json.
        chosen: the only modalities whose files are wanted; None for all.
        problems: is appended to for a file without channel suffix, an unknown channel, and a case without files.

    Raises:
        UserError: when the folder is absent or holds no file of that ending.
    """
    if isinstance(source, str | os.PathLike):
        cases = _cases_of_folder(Path(source), modalities, file_ending, problems)
    else:
        cases = [[str(file) for file in files] for files in source]
        problems += [f"case number {number}: no file." for number, files in enumerate(cases) if not files]
        if not cases:
            raise UserError("There is no case to predict: the list of cases is empty.")
    if chosen is not None:
        cases = [_only(chosen, files, modalities, file_ending, problems) for files in cases if files]
    return [files for files in cases if files]


def _cases_of_folder(folder: Path, modalities: Modalities, file_ending: str, problems: list[str]) -> list[list[str]]:
    if not folder.is_dir():
        raise UserError(f"There is no input folder {folder}.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    images = [name for name in names if name.endswith(file_ending)]
    if not images:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(
            f"The input folder {folder} holds no file that ends with '{file_ending}', as this dataset's images do. "
            f"It holds: {shown or 'no files'}."
        )
    cases: dict[str, list[str]] = {}
    for name in images:
        split = split_name(name, file_ending)
        path = str(folder / name)
        if split is None:
            problems.append(no_suffix(path, modalities, file_ending))
        else:
            cases.setdefault(split[0], []).append(path)
    return [cases[name] for name in sorted(cases)]


def _only(chosen: Subset, files: list[str], modalities: Modalities, file_ending: str, problems: list[str]) -> list[str]:
    channels = assign_channels(files, modalities, file_ending, problems)
    if channels is None:
        return []
    kept = [file for file, channel in zip(files, channels, strict=True) if chosen[channel]]
    name = case_name(files, file_ending)
    if not kept:
        problems.append(
            f"case '{name}': none of the modalities asked for ({modalities.describe(chosen)}); it has "
            f"{modalities.describe([channel in channels for channel in range(len(modalities))])}."
        )
    numbered = [split_name(file, file_ending) for file in files]
    if channels != [None if split is None else split[1] for split in numbered]:
        problems.append(
            f"case '{name}': to use only some of its modalities, the '_XXXX' suffix of each file must say which one "
            f"it is; found {', '.join(files)}."
        )
    return kept


def check_cases(
    cases: Sequence[Sequence[str]],
    reader: BaseReaderWriter,
    modalities: Modalities,
    file_ending: str,
    *,
    chosen: Subset | None = None,
    problems: Sequence[str] = (),
    show_progress: bool = True,
) -> list[Subset]:
    """Read and check all cases before anything is computed.

    Args:
        cases: the files of each case, as `find_cases` returns them.
        reader: an instance of the plans' reader.
        modalities: the dataset's modalities.
        file_ending: as in dataset.json.
        chosen: the only modalities that may be used; None for all.
        problems: what was found before, to be told with the rest.
        show_progress: whether to show a progress bar.

    Returns:
        The available modalities of each case; a file of one constant intensity counts as missing.

    Raises:
        UserError: one error that lists every problem of every case.
    """
    found = list(problems)
    available = []
    for files in tqdm(cases, desc="Checking cases", disable=not show_progress):
        of_case: list[str] = []
        read = read_case(files, reader, modalities, file_ending, of_case)
        subset = () if read is None else check_intensities(read[0], modalities, of_case)
        unwanted = [present and not wanted for present, wanted in zip(subset, chosen or subset, strict=False)]
        if any(unwanted):
            of_case.append(
                f"{files[0]} also holds {modalities.describe(unwanted)}, which was not asked for. Split it into one "
                "file a modality."
            )
        name = case_name(files, file_ending)
        found += [f"case '{name}': {problem}" for problem in of_case]
        available.append(subset)
    raise_for_input(found)
    return available


def naming_problems(cases: Sequence[Sequence[str]], file_ending: str) -> list[str]:
    """Say which cases could not be told apart in an output folder, where the first file's name is the case's."""
    problems = []
    owner: dict[str, str] = {}
    for files in cases:
        name = case_name(files, file_ending)
        if split_name(files[0], file_ending) is None:
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
        raise UserError(
            f"The input has {len(problems)} problem(s); nothing was computed:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )


def report_of(available: Subset, modalities: Modalities) -> dict[str, list[str]]:
    """Return the names of a case's modalities: `{"available": [...], "missing": [...]}`."""
    pairs = list(zip(modalities, available, strict=True))
    return {
        "available": [name for name, present in pairs if present],
        "missing": [name for name, present in pairs if not present],
    }


def print_report(reports: Mapping[str, Mapping[str, Sequence[str]]], remarks: Mapping[str, str] | None = None) -> None:
    """Print one line a case, with a remark after it where there is one."""
    for name, report in reports.items():
        missing = f", missing: {', '.join(report['missing'])}" if report["missing"] else ", nothing missing"
        print(f"{name}: available: {', '.join(report['available'])}{missing}{(remarks or {}).get(name, '')}")


def write_report(folder: Path, reports: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Write `modalities.json` into a folder, in one step; other cases that an existing one lists are kept.

    Raises:
        UserError: when an existing file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_NAME
    with one_at_a_time(path):
        before = read_json(path) if path.exists() else {}
        merged = {**before, **reports}
        write_json(path, {name: merged[name] for name in sorted(merged)})


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Keep the processes that predict the parts of one folder, on one machine or many, from overwriting entries."""
    lock = path.with_name(f".{path.name}.lock")
    _acquire(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _acquire(lock: Path) -> None:
    seen, since = 0, 0.0
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            return
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                made = lock.stat().st_mtime_ns
                if made != seen:
                    seen, since = made, time.monotonic()
                elif time.monotonic() - since > _ABANDONED_AFTER_S:
                    lock.unlink()
            time.sleep(0.02)
