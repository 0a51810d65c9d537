"""The fingerprint of a dataset, some of whose cases lack modalities or the label.

For complete and labelled cases the file is the one that nnU-Net's DatasetFingerprintExtractor writes, which cannot be
used for others: it reads all channels and the label of every case.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunetv2_unimrseg.data.case_table import TrainingCase, read_case_table
from nnunetv2_unimrseg.data.reading import available_modalities, read_usable_case
from nnunetv2_unimrseg.data.training_cases import RawDataset, RawTrainingCase
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.utils.files import read_json, write_text
from nnunetv2_unimrseg.utils.processes import map_in_processes

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

FINGERPRINT_NAME = "dataset_fingerprint.json"

NUM_FOREGROUND_VOXELS = 10e7
"""How many foreground voxels are sampled of all labelled cases together, as in nnU-Net."""


@dataclass(frozen=True)
class CaseAnalysis:
    """What the fingerprint takes from one case.

    Attributes:
        shape: voxels an axis after the crop to what is not zero in some modality.
        spacing: mm.
        relative_size: voxels after the crop, as a share of those before.
        foreground: sampled intensities inside the labels, by channel number; none of an unlabelled case, and of
            channels that are absent.
    """

    shape: tuple[int, ...]
    spacing: Sequence[float]
    relative_size: float
    foreground: dict[int, Sequence[float]]


def write_fingerprint(path: Path, raw: RawDataset, num_processes: int) -> None:
    """Measure the training cases and write `dataset_fingerprint.json`.

    Shapes and spacings are those of all cases, the intensities of a channel those of the labelled cases that have it.

    Args:
        path: of the file.
        raw: the dataset, checked.
        num_processes: that read the cases.

    Raises:
        UserError: when a modality has no voxel inside the labels, or such large ones that their mean is no number.
        OSError: when the file's folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    num_samples = int(NUM_FOREGROUND_VOXELS // sum(case.labelled for case in raw.table.values()))
    arguments = [(case, raw.reader_class, raw.modalities, raw.file_ending, num_samples) for case in raw.cases]
    cases = map_in_processes(
        analyse_case, arguments, num_processes, "Use fewer processes (-np).", "Extracting dataset fingerprint"
    )
    intensities = {}
    for channel, name in enumerate(raw.modalities.channel_names):
        sampled = [case.foreground[channel] for case in cases if channel in case.foreground]
        intensities[channel] = _intensity_statistics(np.concatenate(sampled), name)
    _check_intensities(intensities)
    fingerprint = {
        "spacings": [case.spacing for case in cases],
        "shapes_after_crop": [case.shape for case in cases],
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": np.median([case.relative_size for case in cases]),
    }
    write_text(path, json.dumps(fingerprint, sort_keys=True, indent=4))


def analyse_case(
    case: RawTrainingCase,
    reader_class: type[BaseReaderWriter],
    modalities: Modalities,
    file_ending: str,
    num_samples: int,
) -> CaseAnalysis:
    """Read and measure one case; `num_samples` voxels are drawn from its foreground, with replacement."""
    reader = reader_class()
    read = read_usable_case(case.name, case.images, reader, modalities, file_ending)
    available = modalities.expand(available_modalities(read.image, modalities)[0])
    read.image[np.logical_not(available)] = 0
    label = None if case.label is None else reader.read_seg(case.label)[0]
    image, label, _ = crop_to_nonzero(read.image, label)
    channels = np.flatnonzero(available).tolist() if case.label is not None else []
    sampled, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        label, image[channels], num_samples=num_samples
    )
    return CaseAnalysis(
        image.shape[1:],
        read.properties["spacing"],
        np.prod(image.shape[1:]) / np.prod(read.image.shape[1:]),
        dict(zip(channels, sampled, strict=True)),
    )


def _intensity_statistics(values: np.ndarray, modality: str) -> dict[str, float]:
    if values.size == 0:
        raise UserError(
            f"No labelled case has a voxel of a label where there is {modality}. Label some, since the intensities "
            "inside the labels are needed for planning."
        )
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    with np.errstate(all="ignore"):
        return {
            "mean": float(np.mean(values)), "median": float(median), "std": float(np.std(values)),
            "min": float(np.min(values)), "max": float(np.max(values)),
            "percentile_99_5": float(high), "percentile_00_5": float(low),
        }  # fmt: skip


def check_fingerprint(path: Path, raw: RawDataset) -> None:
    """Check a fingerprint that is reused; warn where the dataset has changed since it was made.

    Raises:
        UserError: when it is damaged, or the intensities inside the labels, with which CT is normalised, are no
            numbers.
    """
    try:
        content = read_json(path)
        described = len(content["spacings"])
        intensities = content["foreground_intensity_properties_per_channel"]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Run the command again with --clean.") from None
    _check_intensities(intensities)
    num_cases = len(raw.cases)
    complete = TrainingCase(tuple(raw.modalities), labelled=True)
    before = read_case_table(path.parent) or dict.fromkeys(raw.table, complete)
    changes = ""
    if described != num_cases:
        changes = f"describes {described} training cases, but the dataset has {num_cases} now."
    elif before != raw.table:
        changes = "was made when other modalities or labels were missing."
    if changes:
        print(f"WARNING: {path} {changes} Run the command again with --clean if the dataset has changed.")


def _check_intensities(of_channels: Mapping[Any, Mapping[str, float]]) -> None:
    unusable = [str(channel) for channel, values in of_channels.items() if not all(map(math.isfinite, values.values()))]
    if unusable:
        raise UserError(
            f"The intensities of channel {', '.join(unusable)} inside the labels are so large that their mean or "
            "standard deviation is no number. Look for images with wrong values there, replace them, and run the "
            "command again with --clean."
        )
