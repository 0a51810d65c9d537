"""The cases to evaluate: the validation cases of folds, or those of a folder; each with its label, checked."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_unimrseg.data.case_table import read_case_table
from nnunetv2_unimrseg.data.cases import find_cases
from nnunetv2_unimrseg.data.label_values import known_labels, unknown_values
from nnunetv2_unimrseg.data.reading import assign_channels, case_name, read_label
from nnunetv2_unimrseg.data.scan_folder import scan_folder, why_unusable
from nnunetv2_unimrseg.data.whole_image import read_header
from nnunetv2_unimrseg.errors import UserError, counted, format_size, listed
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.paths import find_dataset, nnunet_folder
from nnunetv2_unimrseg.nnunet.types import DatasetJson, Plans
from nnunetv2_unimrseg.utils.threads import map_in_threads

MOST_NAMED_PROBLEMS = 20


@dataclass(frozen=True)
class EvaluationCase:
    """A case with its reference.

    Attributes:
        name: the case's name.
        fold: the fold whose model predicts it; several joined by "+" for an ensemble.
        files: its images, one for each modality, in channel order.
        label: the file of the reference segmentation.
        channels: the channel number of each file.
    """

    name: str
    fold: str
    files: tuple[str, ...]
    label: str
    channels: tuple[int, ...]

    def images(self, modalities: Modalities) -> dict[str, str]:
        """Return the files by modality: of one that has several channels, that of the first."""
        pairs = reversed(list(zip(self.channels, self.files, strict=True)))
        return {modalities.names[modalities.modality_of_channel(channel)]: file for channel, file in pairs}

    @functools.cached_property
    def fingerprint(self) -> list[list[int]]:
        """Size and modification time of every file when the case was found; they tell whether a file changed since."""
        states = [os.stat(file) for file in (*self.files, self.label)]
        return [[state.st_size, state.st_mtime_ns] for state in states]


def validation_cases(
    plans: Plans, configuration: str, dataset_json: DatasetJson, folds: Sequence[str]
) -> list[EvaluationCase]:
    """Return the cases of nnUNet_raw that nnU-Net validates the folds with; for fold "all", its training cases.

    Raises:
        UserError: when the dataset is not in nnUNet_raw and nnUNet_preprocessed, its dataset.json has mistakes, its
            folds are not known, a case lacks files, or what looks like one of its scans cannot be used.
    """
    dataset = find_dataset(plans["dataset_name"], "nnUNet_raw", "nnUNet_preprocessed")
    raw = nnunet_folder("nnUNet_raw") / dataset
    in_raw = get_filenames_of_train_images_and_targets(str(raw), read_dataset_json(raw / "dataset.json", raw=True))
    modalities, ending = Modalities.from_dataset_json(dataset_json), dataset_json["file_ending"]
    problems, found = [], []
    for fold in folds:
        for name in _validation_names(plans, configuration, dataset, fold):
            if name not in in_raw:
                problems.append(f"case '{name}' of fold {fold} is not in {raw}.")
                continue
            files, label = in_raw[name]["images"], in_raw[name]["label"]
            channels, unassigned = assign_channels(files, modalities, ending)
            problems += unassigned
            found.append(EvaluationCase(name, fold, tuple(files), label, tuple(channels or ())))
    problems += _unusable_images(raw / "imagesTr", ending, {case.name for case in found})
    names = [case.name for case in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        problems.append(
            f"{counted(len(twice), 'case is', 'cases are')} validated by several of these folds, for example "
            f"'{min(twice)}'. Evaluate these folds one at a time (-f)."
        )
    return _check_files(found, problems, ending)


def _unusable_images(folder: Path, file_ending: str, cases: Set[str]) -> list[str]:
    """Return the problems of scans that nnU-Net does not list among the images, so that they would count as missing."""
    if not folder.is_dir():  # dataset.json lists the files
        return []
    return [str(scan) for scan in scan_folder(folder, file_ending).unusable if scan.case in cases]


def _validation_names(plans: Plans, configuration: str, dataset: str, fold: str) -> list[str]:
    """Return the cases of a fold's validation, as the trainers' `do_split` does: labelled ones only."""
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    data = folder / PlansManager(plans).get_configuration(configuration).data_identifier
    splits_file = folder / "splits_final.json"
    absent = [path for path in ([data] if fold == "all" else [data, splits_file]) if not path.exists()]
    if absent:
        raise UserError(
            f"It is not known which cases fold {fold} was validated with: there is no {absent[0]}. Preprocess the "
            "dataset again, or evaluate other cases with -i IMAGES -l LABELS."
        )
    unlabelled = {name for name, case in read_case_table(folder).items() if not case.labelled}
    names = sorted(set(infer_dataset_class(str(data)).get_identifiers(str(data))) - unlabelled)
    if fold == "all":
        return names
    splits = json.loads(splits_file.read_text())
    if int(fold) < len(splits):
        return list(splits[int(fold)]["val"])
    # a fold that the file does not list has a random split, 80 to 20
    training = np.random.RandomState(12345 + int(fold)).choice(len(names), int(len(names) * 0.8), replace=False)
    return [name for number, name in enumerate(names) if number not in training]


def cases_of_folders(
    images: str | os.PathLike[str], labels: str | os.PathLike[str], dataset_json: DatasetJson, folds: Sequence[str]
) -> list[EvaluationCase]:
    """Return the cases of an input folder whose references lie in a folder of labels.

    Raises:
        UserError: when a folder is absent, a file has no channel suffix, what looks like a scan cannot be used, or a
            case has no label.
    """
    if not Path(labels).is_dir():
        raise UserError(f"There is no folder of labels {labels}.")
    modalities, ending = Modalities.from_dataset_json(dataset_json), dataset_json["file_ending"]
    found = []
    cases, problems = find_cases(images, modalities, ending, None)
    for files in cases:
        name = case_name(files, ending)
        channels, unassigned = assign_channels(files, modalities, ending)
        problems += unassigned
        label = str(Path(labels) / f"{name}{ending}")
        found.append(EvaluationCase(name, "+".join(folds), tuple(files), label, tuple(channels or ())))
    return _check_files(found, problems, ending)


def check_label_values(
    cases: Sequence[EvaluationCase], plans: Plans, dataset_json: DatasetJson, *, show_progress: bool = True
) -> None:
    """Read the references and check that they hold no other values than the dataset's labels.

    Raises:
        UserError: one error that lists every case with another value, and every reference that cannot be read.
    """
    plans_manager = PlansManager(plans)
    known = known_labels(plans_manager.get_label_manager(dataset_json))
    check = partial(_label_problems, plans_manager.image_reader_writer_class(), known)
    results = map_in_threads(check, cases, "Checking labels", show_progress=show_progress)
    _raise_for([problem for found in results for problem in found])


def _label_problems(reader: BaseReaderWriter, known: frozenset[int], case: EvaluationCase) -> list[str]:
    label, problems = read_label(case.label, reader, None)
    unknown = "" if label is None else unknown_values(label, known)
    if unknown:
        problems.append(f"the label {case.label} holds {unknown}.")
    return [f"case '{case.name}': {problem}" for problem in problems]


def _check_files(cases: Sequence[EvaluationCase], problems: list[str], file_ending: str) -> list[EvaluationCase]:
    """Check, by their headers alone, that every case has its files and a label of the images' shape."""
    for case in cases:
        found = [_absence(case, file, file_ending) for file in (*case.files, case.label) if why_unusable(file)]
        if not found:
            case.fingerprint  # noqa: B018 (taken now, as files may change or go while others are computed)
            found = _shape_problems(case)
        problems += [f"case '{case.name}': {problem}" for problem in found]
    _raise_for(problems)
    if not cases:
        raise UserError("There is no case to evaluate. Choose other folds (-f), or cases with -i IMAGES -l LABELS.")
    return list(cases)


def _absence(case: EvaluationCase, file: str, file_ending: str) -> str:
    """Say why a case's file cannot be used; a label of another ending or letter case may be there instead."""
    folder = Path(file).parent
    if file == case.label and folder.is_dir():
        for label in scan_folder(folder, file_ending, suffixed=False, case=case.name).unusable:
            return f"the label {label}"
    return f"{file}: {why_unusable(file)}" if os.path.lexists(file) else f"there is no file {file}."


def _raise_for(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(
            f"The cases have {counted(len(problems), 'problem')}; nothing was computed:\n"
            f"{listed(problems, MOST_NAMED_PROBLEMS)}"
        )


def _shape_problems(case: EvaluationCase) -> list[str]:
    """Compare the headers of label and image; those that only place them differently are a printed warning."""
    image, label = read_header(case.files[0]), read_header(case.label)
    if image is None or label is None:
        return []
    sizes = [format_size(header.GetSize()[:3]) for header in (image, label)]
    if sizes[0] != sizes[1]:
        return [
            f"the label {case.label} has {sizes[1]} voxels, the image {case.files[0]} {sizes[0]}. Both must lie on one "
            "voxel grid."
        ]
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        of_image, of_label = (np.array(getattr(header, what)()) for header in (image, label))
        if of_image.shape == of_label.shape and not np.allclose(of_image, of_label, atol=1e-3):
            print(
                f"WARNING: case '{case.name}': the label {case.label} and the image {case.files[0]} differ in "
                f"{what.removeprefix('Get').lower()}; they are compared voxel by voxel, with the image's spacing."
            )
    return []
