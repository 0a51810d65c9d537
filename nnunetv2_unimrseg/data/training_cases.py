"""The training cases of a raw nnU-Net dataset, all checked before anything is computed from them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.data.cases import describe_duplicates, group_by_case
from nnunetv2_unimrseg.data.label_values import known_labels, unknown_values
from nnunetv2_unimrseg.data.reading import (
    RawCase,
    available_channels,
    named_channels,
    read_case,
    read_label,
)
from nnunetv2_unimrseg.data.scan_folder import FolderContents, scan_folder, why_unusable
from nnunetv2_unimrseg.errors import UserError, counted, listed
from nnunetv2_unimrseg.modalities import Modalities, check_channels
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.types import DatasetJson
from nnunetv2_unimrseg.utils.threads import map_in_threads

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

    from nnunetv2_unimrseg.data.normalised import Normalisation

MOST_NAMED_PROBLEMS = 100
MOST_NAMED_CASES = 20

_NEEDS_ALL = "Modalities may be missing in new patients; training needs all of them in every training case."
_LEAVE_CASE_OUT = "leave the case out"


@dataclass(frozen=True)
class TrainingCase:
    """A case as nnU-Net will find it.

    Attributes:
        name: the case's.
        images: its files in the order of their names.
        label: the file of its label.
        label_problem: why there is no such file that can be read, or None.
    """

    name: str
    images: tuple[str, ...]
    label: str
    label_problem: str | None


@dataclass(frozen=True)
class _Expected:
    """What every training case is checked against."""

    reader: BaseReaderWriter
    modalities: Modalities
    file_ending: str
    labels: frozenset[int]
    normalisations: tuple[Normalisation, ...]


def check_raw_dataset(folder: Path, *, show_progress: bool = True) -> int:
    """Check dataset.json and every training case: files, geometry, intensities, label values. All files are read.

    A case must pass the checks of prediction (see `reading.read_case`). Besides, it needs all modalities, none of them
    blank or useless after normalisation, and a label on the same grid that holds only the dataset's values.

    Args:
        folder: `nnUNet_raw/DatasetXXX_Name`.
        show_progress: whether to show a progress bar.

    Returns:
        The number of training cases.

    Raises:
        UserError: for mistakes in dataset.json, and one error that lists every problem of every training case.
    """
    dataset_json = read_dataset_json(folder / "dataset.json", raw=True)
    modalities = Modalities.from_dataset_json(dataset_json)
    cases, problems = find_training_cases(folder, dataset_json, modalities)
    expected = int(dataset_json["numTraining"])
    if len(cases) != expected and not (problems and not cases):
        named = ", ".join(case.name for case in cases[:MOST_NAMED_CASES])
        more = ", ..." if len(cases) > MOST_NAMED_CASES else ""
        problems.append(
            f"dataset.json says numTraining = {expected}, but there are {len(cases)} cases: {named or 'none'}{more}. "
            f'Write: "numTraining": {len(cases)}, if these are all.'
        )
    check = partial(_check_case, _expected(dataset_json, modalities, cases))
    checked = map_in_threads(check, cases, "Checking training cases", show_progress=show_progress)
    problems += [problem for found, _ in checked for problem in found]
    if problems:
        needs_all = f"\n{_NEEDS_ALL}" if any(lacks_modalities for _, lacks_modalities in checked) else ""
        raise UserError(
            f"The training data in {folder} has {counted(len(problems), 'problem')}; nothing was computed:\n"
            f"{listed(problems, MOST_NAMED_PROBLEMS)}{needs_all}"
        )
    return len(cases)


def find_training_cases(
    folder: Path, dataset_json: DatasetJson, modalities: Modalities
) -> tuple[list[TrainingCase], list[str]]:
    """Find the training cases that nnU-Net will find.

    Args:
        folder: of the raw dataset.
        dataset_json: its checked content.
        modalities: the dataset's.

    Returns:
        The cases; and the problems: absent folders, scans that cannot be used, names without channel suffix, hidden
        files that nnU-Net takes for scans.
    """
    if "dataset" in dataset_json:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        copied = {"dataset": {name: dict(entry) for name, entry in dataset_json["dataset"].items()}}
        found = get_filenames_of_train_images_and_targets(str(folder), copied)
        return [_training_case(name, files["images"], files["label"]) for name, files in found.items()], []
    absent = [name for name in ("imagesTr", "labelsTr") if not (folder / name).is_dir()]
    if absent:
        return [], [f"there is no folder {folder / name}." for name in absent]
    ending = dataset_json["file_ending"]
    images, labels = (
        scan_folder(folder / name, ending, suffixed=name == "imagesTr", otherwise=_LEAVE_CASE_OUT)
        for name in ("imagesTr", "labelsTr")
    )
    problems = [str(scan) for scan in images.unusable]
    problems += [
        f"{path} is a hidden file, which nnU-Net takes for a scan. Remove it: "
        f"find '{path.parent}' -name '{_hidden_pattern(path)}' -delete"
        for path in images.hidden
    ]
    if images.duplicates:
        print(describe_duplicates(images.duplicates, ending))
    found, unnamed = group_by_case(images.images, modalities, ending)
    problems += unnamed
    if not found and not problems:
        problems.append(_no_images(folder / "imagesTr", ending, images))
    unusable = {scan.case: str(scan) for scan in labels.unusable}
    return [
        _training_case(name, files, str(folder / "labelsTr" / f"{name}{ending}"), unusable.get(name))
        for name, files in found.items()
    ], problems


def _training_case(name: str, images: Sequence[str], label: str, problem: str | None = None) -> TrainingCase:
    reason = why_unusable(label, _LEAVE_CASE_OUT)
    if problem is None and reason is not None:
        problem = f"the label {label}: {reason}"
    return TrainingCase(name, tuple(images), label, problem)


def _hidden_pattern(path: Path) -> str:
    return "._*" if path.name.startswith("._") else path.name


def _no_images(folder: Path, ending: str, contents: FolderContents) -> str:
    there = ", ".join(contents.others[:5]) or "no other files"
    return f"{folder} holds no file that ends with '{ending}', as dataset.json's file_ending says. It holds: {there}."


def _expected(dataset_json: DatasetJson, modalities: Modalities, cases: Sequence[TrainingCase]) -> _Expected:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunetv2_unimrseg.data.normalised import Normalisation

    label_manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    names = list(check_channels(dataset_json)[1].values())
    return _Expected(
        _reader(dataset_json, [case.images[0] for case in cases if case.images]),
        modalities,
        dataset_json["file_ending"],
        known_labels(label_manager),
        tuple(Normalisation.before_planning(names, masked=masked) for masked in (True, False)),
    )


def _reader(dataset_json: DatasetJson, examples: Sequence[str]) -> BaseReaderWriter:
    """Return the reader that nnU-Net would choose by the first image, here by the first that can be read."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    for example in examples:
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(dict(dataset_json), example, verbose=False)()
    return determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False)()


def _check_case(expected: _Expected, case: TrainingCase) -> tuple[list[str], bool]:
    """Return the problems of a case, and whether it lacks a modality."""
    problems: list[str] = []
    read: RawCase | None = None
    modalities, ending = expected.modalities, expected.file_ending
    if case.images:
        read, problems = read_case(case.images, expected.reader, modalities, ending, _LEAVE_CASE_OUT)
    given = named_channels(case.images, modalities, ending) if read is None else read.files
    absent = [f"_{number:04d} ({name})" for number, name in enumerate(modalities) if number not in given]
    lacks_modalities = bool(absent) and (bool(given) or not problems)
    if lacks_modalities:
        problems.append(f"lacks {', '.join(absent)}.")
    if read is not None:
        problems += _intensity_problems(read, expected)
    problems += [case.label_problem] if case.label_problem else _label_problems(case.label, read, expected)
    return [f"case '{case.name}': {problem}" for problem in problems], lacks_modalities


def _intensity_problems(case: RawCase, expected: _Expected) -> list[str]:
    available, problems = available_channels(case.image, expected.modalities, _LEAVE_CASE_OUT)
    for channel, file in case.files.items():
        if not available[channel]:
            name, value = expected.modalities.names[channel], case.image[channel].flat[0]
            problems.append(
                f"{file}: {name} is blank, every voxel being {value:g}. Training needs a real scan; give one, or "
                f"{_LEAVE_CASE_OUT}."
            )
    if problems:
        return problems
    from nnunetv2_unimrseg.data.normalised import normalisation_problems

    for normalisation in expected.normalisations:
        if problems := normalisation_problems(
            case.image, available, expected.modalities, normalisation, case.files, _LEAVE_CASE_OUT
        ):
            return problems
    return []


def _label_problems(file: str, case: RawCase | None, expected: _Expected) -> list[str]:
    label, problems = read_label(file, expected.reader, case, _LEAVE_CASE_OUT)
    unknown = "" if label is None else unknown_values(label, expected.labels)
    return [*problems, f"{file} holds {unknown}."] if unknown else problems
