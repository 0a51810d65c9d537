"""The training cases of a raw nnU-Net dataset, all checked before anything is computed from them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_unimrseg.data.case_table import TrainingCase, count_cases
from nnunetv2_unimrseg.data.cases import describe_duplicates, group_by_case
from nnunetv2_unimrseg.data.label_values import known_labels, unknown_values
from nnunetv2_unimrseg.data.reading import RawCase, check_intensities, read_case, read_label
from nnunetv2_unimrseg.data.scan_folder import FolderContents, scan_folder, why_unusable
from nnunetv2_unimrseg.errors import UserError, counted, enumerated, listed
from nnunetv2_unimrseg.modalities import Modalities, Subset, check_channels
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.types import DatasetJson
from nnunetv2_unimrseg.utils.threads import map_in_threads

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

    from nnunetv2_unimrseg.data.normalised import Normalisation

MOST_NAMED_PROBLEMS = 100
MOST_NAMED_CASES = 20

FEWEST_CASES_OF_A_MODALITY = 3
FEWEST_LABELLED_CASES = 2
"""One to train with and one to validate with."""

_LEAVE_OUT = "leave the file or the case out"


@dataclass(frozen=True)
class RawTrainingCase:
    """A training case in the raw dataset.

    Attributes:
        name: the case's.
        images: its files in the order of their names, at least one.
        label: the file of its label; None for an unlabelled case.
        label_problem: why that file cannot be read, or None.
    """

    name: str
    images: tuple[str, ...]
    label: str | None
    label_problem: str | None = None


@dataclass(frozen=True)
class RawDataset:
    """The training cases of a raw dataset that passed all checks.

    Attributes:
        modalities: the dataset's.
        file_ending: as in dataset.json.
        reader_class: nnU-Net's reader of the images.
        cases: in nnU-Net's order.
        table: what each case has, by name.
    """

    modalities: Modalities
    file_ending: str
    reader_class: type[BaseReaderWriter]
    cases: tuple[RawTrainingCase, ...]
    table: dict[str, TrainingCase]

    @property
    def is_complete(self) -> bool:
        """Whether every case has every modality and a label."""
        counts = count_cases(list(self.table.values()), len(self.modalities))
        return counts["labelled"] == counts["cases"] and not counts["incomplete"]


@dataclass(frozen=True)
class _Expected:
    """What every training case is checked against."""

    reader: BaseReaderWriter
    modalities: Modalities
    file_ending: str
    labels: frozenset[int]
    normalisations: tuple[Normalisation, ...]


@dataclass(frozen=True)
class _Checked:
    """What was found out about a case: its problems; where there are none, what is available and its blank files."""

    problems: list[str]
    available: Subset
    blank: list[str]


def check_raw_dataset(
    folder: Path, *, labelled_only: bool = False, complete_only: bool = False, show_progress: bool = True
) -> RawDataset:
    """Check dataset.json and every training case: files, geometry, intensities, label values. All files are read.

    A case may lack modalities (a blank image, of one intensity, counts as absent) and its label. What is there must
    pass the checks of prediction (see `reading.read_case`), must not become useless by normalisation, and a label must
    lie on the same grid and hold the dataset's values only.

    Args:
        folder: `nnUNet_raw/DatasetXXX_Name`.
        labelled_only: whether every case must have a label.
        complete_only: whether every case must have every modality.
        show_progress: whether to show a progress bar.

    Raises:
        UserError: for mistakes in dataset.json, and one error that lists every problem of every training case; when too
            few cases have a modality or a label.
    """
    dataset_json = read_dataset_json(folder / "dataset.json", raw=True)
    modalities = Modalities.from_dataset_json(dataset_json)
    cases, problems = find_training_cases(folder, dataset_json, modalities)
    expected_number = int(dataset_json["numTraining"])
    if len(cases) != expected_number and not (problems and not cases):
        problems.append(
            f"dataset.json says numTraining = {expected_number}, but {counted(len(cases), 'case')} "
            f"{'has' if len(cases) == 1 else 'have'} images, labelled or not: "
            f"{enumerated([case.name for case in cases], MOST_NAMED_CASES) or 'none'}. "
            f'Write: "numTraining": {len(cases)}, if these are all.'
        )
    expected = _expected(dataset_json, modalities, cases)
    checked = map_in_threads(
        partial(_check_case, expected), cases, "Checking training cases", show_progress=show_progress
    )
    problems += [problem for found in checked for problem in found.problems]
    table = {
        case.name: TrainingCase(tuple(modalities.available(found.available)), case.label is not None)
        for case, found in zip(cases, checked, strict=True)
        if not found.problems
    }
    problems += _strictness_problems(table, modalities, labelled_only=labelled_only, complete_only=complete_only)
    if problems := problems or _coverage_problems(table, modalities):
        raise UserError(
            f"The training data in {folder} has {counted(len(problems), 'problem')}; nothing was computed:\n"
            f"{listed(problems, MOST_NAMED_PROBLEMS)}"
        )
    if blank := [file for found in checked for file in found.blank]:
        print(
            f"{counted(len(blank), 'image')} of one single intensity, taken for absent: "
            f"{enumerated(blank, MOST_NAMED_CASES)}"
        )
    return RawDataset(modalities, expected.file_ending, type(expected.reader), tuple(cases), table)


def _strictness_problems(
    table: Mapping[str, TrainingCase], modalities: Modalities, *, labelled_only: bool, complete_only: bool
) -> list[str]:
    unlabelled = [name for name, case in table.items() if not case.labelled]
    incomplete = {
        name: [modality for modality in modalities if modality not in case.available]
        for name, case in table.items()
        if len(case.available) < len(modalities)
    }
    problems = []
    if labelled_only and unlabelled:
        problems.append(
            f"--labelled-only was given, but there is no label of {counted(len(unlabelled), 'case')}: "
            f"{', '.join(unlabelled)}."
        )
    if complete_only and incomplete:
        lacking = ", ".join(f"{name} ({'+'.join(missing)})" for name, missing in incomplete.items())
        problems.append(
            f"--complete-only was given, but modalities are missing in {counted(len(incomplete), 'case')}: {lacking}."
        )
    return problems


def _coverage_problems(table: Mapping[str, TrainingCase], modalities: Modalities) -> list[str]:
    """Return the problem that too few cases have a label, and that too few have a modality."""
    labelled = sum(case.labelled for case in table.values())
    fewest = min(FEWEST_LABELLED_CASES, len(table))
    problems = []
    if labelled < fewest:
        problems.append(
            f"{labelled} of {counted(len(table), 'case')} {'has' if labelled == 1 else 'have'} a label; at least "
            f"{fewest} must have one, so that there is one to train with and one to validate with."
        )
    having = {
        modality: [case.labelled for case in table.values() if modality in case.available] for modality in modalities
    }
    fewest = min(FEWEST_CASES_OF_A_MODALITY, len(table))
    if any(len(cases) < fewest or not any(cases) for cases in having.values()):
        numbers = ", ".join(f"{modality} {len(cases)} ({sum(cases)} labelled)" for modality, cases in having.items())
        problems.append(
            f"Too few cases have some of the modalities: {numbers}. At least {fewest} must have each, 1 of them "
            "labelled. Add such cases, or make a dataset without this modality."
        )
    return problems


def find_training_cases(
    folder: Path, dataset_json: DatasetJson, modalities: Modalities
) -> tuple[list[RawTrainingCase], list[str]]:
    """Find the training cases: those that have an image, or that dataset.json lists.

    Args:
        folder: of the raw dataset.
        dataset_json: its checked content.
        modalities: the dataset's.

    Returns:
        The cases; and the problems: absent folders, scans that cannot be used, names without channel suffix, hidden
        files that nnU-Net takes for scans, and labels of no case where some case has no label.
    """
    if "dataset" in dataset_json:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        copied = {"dataset": {name: dict(entry) for name, entry in dataset_json["dataset"].items()}}
        found = get_filenames_of_train_images_and_targets(str(folder), copied)
        unlabelled = {name for name, entry in dataset_json["dataset"].items() if not entry["label"]}
        return [
            _listed_case(name, files["images"], None if name in unlabelled else files["label"])
            for name, files in found.items()
        ], []
    absent = [name for name in ("imagesTr", "labelsTr") if not (folder / name).is_dir()]
    if absent:
        return [], [f"there is no folder {folder / name}." for name in absent]
    ending = dataset_json["file_ending"]
    images, labels = (
        scan_folder(folder / name, ending, suffixed=name == "imagesTr", otherwise=_LEAVE_OUT)
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
    usable = {path.name.removesuffix(ending): str(path) for path in labels.images}
    cases = [
        RawTrainingCase(name, tuple(files), usable.get(name, "" if name in unusable else None), unusable.get(name))
        for name, files in found.items()
    ]
    if any(case.label is None for case in cases):  # perhaps because its label has another name
        problems += [
            f"{path}: is the label of no case, for no image is called {name}_XXXX{ending}. Rename it after its case, "
            "or take it out of the folder."
            for name, path in usable.items()
            if name not in found
        ]
    return cases, problems


def _listed_case(name: str, images: Sequence[str], label: str | None) -> RawTrainingCase:
    reason = None if label is None else why_unusable(label, _LEAVE_OUT)
    return RawTrainingCase(name, tuple(images), label, reason and f"the label {label}: {reason}")


def _hidden_pattern(path: Path) -> str:
    return "._*" if path.name.startswith("._") else path.name


def _no_images(folder: Path, ending: str, contents: FolderContents) -> str:
    there = ", ".join(contents.others[:5]) or "no other files"
    return f"{folder} holds no file that ends with '{ending}', as dataset.json's file_ending says. It holds: {there}."


def _expected(dataset_json: DatasetJson, modalities: Modalities, cases: Sequence[RawTrainingCase]) -> _Expected:
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


def _check_case(expected: _Expected, case: RawTrainingCase) -> _Checked:
    available: Subset = ()
    blank: dict[str, None] = {}
    read, problems = read_case(case.images, expected.reader, expected.modalities, expected.file_ending, _LEAVE_OUT)
    if read is not None:
        available, problems = _check_intensities(read, expected)
        there = expected.modalities.expand(available)
        blank = dict.fromkeys(file for channel, file in read.files.items() if not there[channel])
    if case.label_problem is not None:
        problems.append(case.label_problem)
    elif case.label is not None:
        problems += _label_problems(case.label, read, expected)
    return _Checked([f"case '{case.name}': {problem}" for problem in problems], available, list(blank))


def _check_intensities(case: RawCase, expected: _Expected) -> tuple[Subset, list[str]]:
    available, problems = check_intensities(case.image, expected.modalities, _LEAVE_OUT)
    if problems:
        return available, problems
    from nnunetv2_unimrseg.data.normalised import normalisation_problems

    for normalisation in expected.normalisations:
        if problems := normalisation_problems(
            case.image, available, expected.modalities, normalisation, case.files, _LEAVE_OUT
        ):
            break
    return available, problems


def _label_problems(file: str, case: RawCase | None, expected: _Expected) -> list[str]:
    label, problems = read_label(file, expected.reader, case, _LEAVE_OUT)
    unknown = "" if label is None else unknown_values(label, expected.labels)
    return [*problems, f"{file} holds {unknown}."] if unknown else problems
