"""Finds and checks the cases, and plans for each the subsets to reconstruct from and the files to write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.data.cases import Files, check_cases, find_cases, raise_for_input
from nnunetv2_unimrseg.data.reading import case_name, named_channels
from nnunetv2_unimrseg.data.whole_image import written_image_problem
from nnunetv2_unimrseg.method.reconstruction_metrics import missing_patterns
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.reconstruction.reconstruction_folder import PICTURE_SUFFIX, check_reconstruction_folder
from nnunetv2_unimrseg.utils.files import place_problem

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


@dataclass(frozen=True)
class Case:
    """A case whose files have been checked.

    Attributes:
        name: the part of the files' names before the channel suffix.
        files: those to reconstruct from.
        all_files: `files`, and those that are the truth to score with.
        available: the modalities in `files`.
        subsets: what to reconstruct from: `available`, or each missing pattern where nothing is missing.
        targets: the file to write for each missing channel.
        montage: the picture's file.
    """

    name: str
    files: list[str]
    all_files: list[str]
    available: Subset
    subsets: tuple[Subset, ...]
    targets: dict[int, Path]
    montage: Path


def plan_cases(
    images: Files,
    output: Path,
    modalities: Modalities,
    reader: BaseReaderWriter,
    file_ending: str,
    *,
    chosen: Subset | None,
    scores: bool,
    overwrite: bool,
    skip_done: bool,
    part: slice,
    show_progress: bool,
) -> list[Case]:
    """Find and check all cases, and the places of the files to write for them.

    Args:
        images: a folder, or the files of each case.
        output: the folder to write to.
        modalities: the dataset's.
        reader: the plans' reader.
        file_ending: as in dataset.json.
        chosen: the only modalities to reconstruct from; None for all.
        scores: whether to score; if not, a case that lacks nothing has no `subsets`.
        overwrite: whether existing files may be replaced.
        skip_done: whether to leave out finished cases; existing files of the others may be replaced.
        part: which of the cases.
        show_progress: progress bar.

    Raises:
        UserError: as `check_reconstruction_folder`; then one error that lists every problem of the input (see
            `cases.check_cases`), two cases of one name included; then one that lists every output file that cannot be
            written or would be overwritten.
    """
    used, problems = find_cases(images, modalities, file_ending, chosen)
    every = used
    if chosen is not None and not problems:
        every, _ = find_cases(images, modalities, file_ending, None, tell=False)
    problems += _repeated_names(used, file_ending)
    folders = [images] if isinstance(images, str | os.PathLike) else []
    check_reconstruction_folder(output, [*folders, *(file for files in every for file in files)], file_ending)
    pairs = [
        (files, all_files if scores else files)
        for files, all_files in list(zip(used, every, strict=True))[part]
        if not (skip_done and _is_done(output, files, modalities, file_ending))
    ]
    check = {"reader": reader, "modalities": modalities, "file_ending": file_ending, "show_progress": show_progress}
    available = check_cases([files for files, _ in pairs], chosen=chosen, problems=problems, **check)
    if with_truth := [all_files for files, all_files in pairs if len(all_files) > len(files)]:
        check_cases(with_truth, **check)
    cases = []
    for (files, all_files), subset in zip(pairs, available, strict=True):
        name = case_name(files, file_ending)
        subsets = [subset]
        if all(subset):
            subsets = missing_patterns(len(modalities)) if scores else []
        missing = [channel for channel, present in enumerate(modalities.expand(subset)) if not present]
        targets = {channel: _target(output, name, channel, file_ending) for channel in missing}
        montage = _montage(output, name)
        cases.append(Case(name, files, all_files, subset, tuple(subsets), targets, montage))
    raise_for_input(list(_output_problems(cases, replace=overwrite or skip_done)))
    return cases


def _montage(output: Path, name: str) -> Path:
    return output / f"{name}{PICTURE_SUFFIX}"


def _target(output: Path, name: str, channel: int, file_ending: str) -> Path:
    return output / f"{name}_{channel:04d}{file_ending}"


def _is_done(output: Path, files: Sequence[str], modalities: Modalities, file_ending: str) -> bool:
    """Whether the picture, which is written last, and all synthetic images of a case are there and whole."""
    name = case_name(files, file_ending)
    montage, given = _montage(output, name), named_channels(files, modalities, file_ending)
    targets = {channel: _target(output, name, channel, file_ending) for channel in range(modalities.num_channels)}
    if not montage.exists() or not all(targets[channel].exists() for channel in targets if channel not in given):
        return False
    for path in (montage, *(path for path in targets.values() if path.exists())):
        if problem := written_image_problem(path):
            print(f"{path} is not whole: {problem}. The case is reconstructed again.")
            return False
    return True


def _repeated_names(cases: Sequence[Sequence[str]], file_ending: str) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for files in cases:
        name = case_name(files, file_ending)
        if name in first:
            problems.append(f"{first[name]} and {files[0]} are two cases of one name, '{name}'. Rename one of them.")
        first.setdefault(name, files[0])
    return problems


def _output_problems(cases: Sequence[Case], *, replace: bool) -> Iterator[str]:
    for path in (path for case in cases if case.subsets for path in (*case.targets.values(), case.montage)):
        if problem := place_problem(path):
            yield f"{path} cannot be written: {problem} Remove it, or give another output folder (-o)."
        elif path.exists() and not replace:
            yield (
                f"{path} is there already. Replace it (--overwrite), leave finished cases out (--c), or give another "
                "output folder (-o)."
            )
