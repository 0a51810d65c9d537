"""Makes a raw nnU-Net dataset of the files in a folder tree, which stay where they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.data.file_tree import FoundFiles, find_files, read_layout
from nnunetv2_unimrseg.data.scan_folder import READ_BY_NNUNET
from nnunetv2_unimrseg.data.splits import patient_name, patient_pattern
from nnunetv2_unimrseg.errors import UserError, reason_in_words
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import check_dataset_json
from nnunetv2_unimrseg.nnunet.labels import check_labels, check_regions_class_order
from nnunetv2_unimrseg.utils.files import copy_file, whole_folder, write_json


@dataclass(frozen=True)
class DatasetImport:
    """A raw dataset that is ready to be made; everything has been checked.

    Attributes:
        folder: the dataset's, which does not exist yet.
        dataset_json: the content of its dataset.json.
        modalities: in channel order.
        found: the files of the cases.
    """

    folder: Path
    dataset_json: dict[str, Any]
    modalities: Modalities
    found: FoundFiles

    @cached_property
    def files(self) -> dict[str, str]:
        """From each place below the dataset's folder to the absolute path of the file that goes there."""
        ending = self.dataset_json["file_ending"]
        images = {
            f"imagesTr/{case}_{channel:04d}{ending}": os.path.abspath(files[name])
            for case, files in self.found.cases.items()
            for channel, name in enumerate(self.modalities)
            if name in files
        }
        labels = {f"labelsTr/{case}{ending}": os.path.abspath(file) for case, file in self.found.labels.items()}
        return images | labels

    def write(self, *, copy: bool) -> None:
        """Make the dataset's folder, with all in it or not at all.

        Args:
            copy: copy the files; otherwise symbolic links lead to them.

        Raises:
            UserError: when something cannot be written; then nothing is left.
        """
        with whole_folder(self.folder) as temporary:
            for place, source in self.files.items():
                (temporary / place).parent.mkdir(exist_ok=True)
                if copy:
                    copy_file(Path(source), temporary / place)
                else:
                    _link(source, temporary / place)
            write_json(temporary / "dataset.json", self.dataset_json)

    def describe(self) -> str:
        """Return a table of how many cases have which modalities, and how many of them a label."""
        subsets = {case: tuple(name in files for name in self.modalities) for case, files in self.found.cases.items()}
        total = Counter(subsets.values())
        labelled = Counter(subset for case, subset in subsets.items() if case in self.found.labels)
        rows = [("modalities", "cases", "with a label")]
        for subset in sorted(total, key=lambda subset: (-sum(subset), [not present for present in subset])):
            rows.append((self.modalities.describe(subset), str(total[subset]), str(labelled[subset])))
        rows.append(("all", str(len(subsets)), str(sum(labelled.values()))))
        width = max(len(name) for name, _, _ in rows)
        return "\n".join(f"  {name:<{width}}  {cases:>5}  {labels:>12}" for name, cases, labels in rows)


def _link(source: str, place: Path) -> None:
    try:
        place.symlink_to(source)
    except OSError as error:
        raise UserError(
            f"Cannot make symbolic links in {place.parent.parent.parent}: {reason_in_words(error)}. Copy the files "
            "instead (--copy)."
        ) from error


def plan_import(
    source: str | os.PathLike[str],
    folder: Path,
    pattern: str,
    label_pattern: str,
    labels: Mapping[str, Any],
    *,
    names: Mapping[str, str],
    modalities: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    patient: str | None = None,
) -> DatasetImport:
    """Find the files of a raw dataset and check all that can be known without reading images.

    Args:
        source: the folder that holds the tree.
        folder: of the dataset to make; it must not exist.
        pattern: of the scans, with `{case}` and `{modality}` (see `FilePattern`).
        label_pattern: of the labels, with `{case}`. A file that fits both patterns is a label.
        labels: as in dataset.json: from a name to a value, or to a list of values for a region.
        names: from a modality as the files spell it to its name in the dataset.
        modalities: the dataset's, in channel order; None for those of `names`, in their order.
        ignored: patterns of files to leave out.
        patient: a regular expression whose first group is the patient in a case's name; None where each case is a
            patient.

    Raises:
        UserError: as `find_files`; for mistakes in what will be dataset.json; when a label has no scan, no case has a
            label, or `patient` does not fit a case.
    """
    ending = next((ending for ending in READ_BY_NNUNET if pattern.endswith(ending)), None)
    if ending is None:
        raise UserError(
            f"The pattern '{pattern}' must end with the ending of the files, one of {', '.join(READ_BY_NNUNET)}."
        )
    channels = list(modalities or dict.fromkeys(names.values()))
    if not channels:
        raise UserError("Which modalities does the dataset have? Give --modalities, or --names, in channel order.")
    dataset_json: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": 1,
        "file_ending": ending,
    }
    if patient is not None:
        dataset_json["unimrseg"] = {"patient": patient}
    if regions := check_labels(labels).regions:
        dataset_json["regions_class_order"] = check_regions_class_order(None, regions)[1]
    check_dataset_json(dataset_json, "The dataset.json that these arguments ask for", raw=True)
    of_patient = patient_pattern(dataset_json)
    layout = read_layout(pattern, names, Modalities(channels), ending, ignored, label_pattern)
    found = find_files(source, layout)
    alone = [name for name in found.labels if name not in found.cases]
    if alone:
        raise UserError(
            f"{found.labels[alone[0]]} is the label of a case without scans, '{alone[0]}'"
            f"{f', and there are {len(alone) - 1} more' if len(alone) > 1 else ''}. Change --label-pattern, or leave "
            "it out with --ignore."
        )
    if not found.labels:
        raise UserError(f"No file in {source} fits the pattern of the labels, '{label_pattern}'.")
    for case in found.cases:
        patient_name(case, of_patient)
    dataset_json["numTraining"] = len(found.cases)
    return DatasetImport(folder, dataset_json, layout.modalities, found)
