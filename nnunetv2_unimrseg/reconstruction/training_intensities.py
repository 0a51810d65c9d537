"""Intensity statistics of the training set, measured once and kept beside the model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.paths import RAW
from nnunetv2_unimrseg.utils.files import read_json, write_json

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

CACHE_NAME = "unimrseg_intensities.json"
"""The file in the model's folder that keeps the statistics."""

FORMAT = 1
_MOST_NAMED = 10


def training_intensities(
    model_folder: Path,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    modalities: Modalities,
    *,
    num_threads: int = 0,
    show_progress: bool = True,
) -> list[dict[str, float]]:
    """Return, for each channel, the statistics that nnU-Net's normalisers use, averaged over the training cases.

    The raw images in nnUNet_raw are measured, cropped as nnU-Net crops them. The result is kept in the model's folder
    (`CACHE_NAME`). It is used again while the training images' names, sizes and times of change stay the same, and
    where nnUNet_raw does not have the dataset.

    Returns:
        `mean` and `std` (inside the nonzero mask where the plans normalise with it), `minimum` and `maximum`, in raw
        intensities. Cases in which the channel is constant do not count.

    Raises:
        UserError: when there are neither training images nor a kept result, for mistakes in the dataset's dataset.json,
            and for a training image that cannot be used.
    """
    path = model_folder / CACHE_NAME
    masked = list(configuration_manager.use_mask_for_norm)
    basis: dict[str, Any] = {"format": FORMAT, "modalities": list(modalities.channel_names), "masked": masked}
    kept = read_json(path) if path.is_file() else {}
    usable = all(kept.get(key) == value for key, value in basis.items())
    dataset = plans_manager.dataset_name
    raw = os.environ.get(RAW)
    folder = Path(raw) / dataset if raw else None
    if folder is None or not (folder / "dataset.json").is_file():
        if usable:
            return [kept["channels"][name] for name in modalities.channel_names]
        where = f"{RAW} is not set" if folder is None else f"there is no {folder / 'dataset.json'}"
        raise UserError(
            f"The training images of {dataset} are needed once, to measure their intensities, but {where}, and {path} "
            f"does not hold them. Set {RAW} to the folder of the dataset that the model was trained with, copy "
            f"{CACHE_NAME} from where it was made, or leave out --intensities."
        )
    cases = _training_cases(folder)
    basis["training_images"] = _fingerprint(cases)
    if not usable or kept.get("training_images") != basis["training_images"]:
        channels = _measure(cases, plans_manager, masked, modalities, num_threads, show_progress)
        kept = {**basis, "dataset": dataset, "num_cases": len(cases), "channels": channels}
        try:
            write_json(path, kept)
        except UserError as error:
            print(f"The measured intensities are not kept for the next time: {error}")
    return [kept["channels"][name] for name in modalities.channel_names]


def _training_cases(folder: Path) -> dict[str, list[str]]:
    description = read_dataset_json(folder / "dataset.json", raw=True)
    listed = get_filenames_of_train_images_and_targets(str(folder), description)
    cases = {case: list(entry["images"]) for case, entry in listed.items()}
    lacking = [case for case, files in cases.items() if not all(Path(file).is_file() for file in files)]
    if lacking or not cases:
        named = ", ".join(lacking[:_MOST_NAMED]) + (", ..." if len(lacking) > _MOST_NAMED else "")
        raise UserError(
            f"{folder} has {len(cases)} training cases, of which {len(lacking)} lack images ({named or 'none'}). Give "
            "the dataset that the model was trained with, or leave out --intensities."
        )
    return cases


def _fingerprint(cases: Mapping[str, Sequence[str]]) -> str:
    digest = hashlib.sha256()
    for case, files in sorted(cases.items()):
        for file in files:
            state = os.stat(file)
            digest.update(f"{case}/{Path(file).name}/{state.st_size}/{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _measure(
    cases: Mapping[str, Sequence[str]],
    plans_manager: PlansManager,
    masked: Sequence[bool],
    modalities: Modalities,
    num_threads: int,
    show_progress: bool,
) -> dict[str, dict[str, float]]:
    measure = partial(_measure_case, plans_manager.image_reader_writer_class(), masked)
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        measured = pool.map(measure, sorted(cases.values(), key=len))  # cases that may lack a file fail early
        found = list(tqdm(measured, total=len(cases), desc="Measuring training intensities", disable=not show_progress))
    channels = {}
    for channel, name in enumerate(modalities.channel_names):
        known = [entry[channel] for entry in found if entry[channel]]
        if not known:
            raise UserError(f"{name} is constant in every training case, so it has no intensities to map to.")
        channels[name] = {key: float(np.mean([entry[key] for entry in known])) for key in known[0]}
    return channels


def _measure_case(reader: BaseReaderWriter, masked: Sequence[bool], files: Sequence[str]) -> list[dict[str, float]]:
    image, outside, _ = crop_to_nonzero(_read_channels(reader, files, len(masked)))
    mask = outside[0] >= 0
    return [
        _channel_statistics(channel, channel[mask] if uses_mask else channel)
        for channel, uses_mask in zip(image, masked, strict=True)
    ]


def _read_channels(reader: BaseReaderWriter, files: Sequence[str], num_channels: int) -> np.ndarray:
    """Read a case as nnU-Net's readers do, whose files may hold several channels each."""
    advice = "Mend the dataset that the model was trained with, or leave out --intensities."
    images = []
    for file in files:
        try:
            images.append(reader.read_images([file])[0])
        except MemoryError:
            raise
        except Exception as error:  # readers raise whatever their library raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            raise UserError(f"The training image {file} cannot be read: {reason}. {advice}") from error
        if not np.isfinite(images[-1]).all():
            raise UserError(f"The training image {file} holds NaN or infinite values. {advice}")
    shapes = [image.shape for image in images]
    if sum(shape[0] for shape in shapes) != num_channels or len({shape[1:] for shape in shapes}) > 1:
        raise UserError(
            f"The training images {', '.join(files)} do not give the {num_channels} channels of one case: their "
            f"shapes (channels first) are {', '.join(map(str, shapes))}. {advice}"
        )
    return np.concatenate(images)


def _channel_statistics(channel: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """Return statistics of a channel, mean and deviation of the voxels that count; {} where it is constant."""
    minimum, maximum = float(channel.min()), float(channel.max())
    if minimum == maximum:
        return {}
    counted = counted.astype(np.float64)
    return {"mean": float(counted.mean()), "std": float(counted.std()), "minimum": minimum, "maximum": maximum}
