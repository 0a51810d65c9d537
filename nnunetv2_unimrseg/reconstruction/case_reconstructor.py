"""Reads, preprocesses, reconstructs, scores and writes one case at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from torch import Tensor

from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor
from nnunetv2_unimrseg.data.reading import assign_channels, read_usable_case
from nnunetv2_unimrseg.data.subset_preprocessing import preprocess_subsets
from nnunetv2_unimrseg.errors import UserError, in_one_line
from nnunetv2_unimrseg.inference.reconstructor import Reconstructor
from nnunetv2_unimrseg.method.reconstruction_metrics import METRICS, reconstruction_scores
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.nnunet.types import ImageProperties
from nnunetv2_unimrseg.reconstruction.geometry import crop_box, to_original_grid
from nnunetv2_unimrseg.reconstruction.montage import middle_of_content
from nnunetv2_unimrseg.reconstruction.normalisers import read_normalisers
from nnunetv2_unimrseg.reconstruction.planning import Case
from nnunetv2_unimrseg.reconstruction.writing import header_description, write_image


@dataclass(frozen=True)
class LoadedCase:
    """A case that was read; arrays are on the original grid, as the reader returns them.

    Attributes:
        image: (C, X, Y, Z) raw, of the files to reconstruct from.
        properties: the reader's.
        truth: (C, X, Y, Z) in normalised units, NaN where it is not known or not needed; None where nothing is scored.
        box: what preprocessing keeps of all the case's images.
        slice_index: the slice for the picture.
    """

    image: np.ndarray
    properties: ImageProperties
    truth: np.ndarray | None
    box: tuple[slice, ...]
    slice_index: int


@dataclass(frozen=True)
class PreprocessedCase:
    """A case with one subset, ready for the network: `data` (C, X, Y, Z), and what preprocessing says of it."""

    case: Case
    subset: Subset
    loaded: LoadedCase
    data: Tensor
    properties: ImageProperties


@dataclass(frozen=True)
class ReconstructedCase:
    """What was reconstructed, and written, from one subset of a case.

    Attributes:
        rows: of the table that `reconstruct` returns.
        slices: (Y, X) of each missing channel; as written, or in normalised units where the truth is known.
    """

    case: Case
    subset: Subset
    loaded: LoadedCase
    rows: list[dict[str, Any]]
    slices: dict[int, np.ndarray]


@dataclass(frozen=True)
class FailedCase:
    """A case that could not be reconstructed from one subset, and why."""

    case: Case
    subset: Subset
    reason: str


class CaseReconstructor:
    """Reconstructs cases with one model. `preprocess` and `export` may run in threads.

    An error in a case makes a `FailedCase`; only a file that cannot be written raises, UserError.

    Args:
        model: the model.
        intensities: whether files get raw intensities.
        scores: whether to score where the truth is known.
        statistics: the training set's averages, by channel, where a normaliser's inverse needs them.
    """

    def __init__(
        self,
        model: Reconstructor,
        *,
        intensities: bool = False,
        scores: bool = True,
        statistics: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        self.model = model
        self._intensities, self._scores, self._statistics = intensities, scores, statistics
        self._plans, self._configuration = model.plans_manager, model.configuration_manager
        self._normalisers = read_normalisers(self._plans, self._configuration)
        self._reader = self._plans.image_reader_writer_class
        self._ending = model.dataset_json["file_ending"]

    def preprocess(self, case: Case) -> Iterator[PreprocessedCase | FailedCase]:
        """Read a case once and preprocess it for each of its subsets."""
        left = {self.model.modalities.describe(subset): subset for subset in case.subsets}
        try:
            loaded = self._load(case)
            preprocessed = preprocess_subsets(
                loaded.image, loaded.properties, dict(left), self._plans, self._configuration, self.model.dataset_json
            )
            for name, data, properties in preprocessed:
                yield PreprocessedCase(case, left.pop(name), loaded, data, properties)
        except Exception as error:
            for subset in left.values():
                yield FailedCase(case, subset, in_one_line(error))

    def _load(self, case: Case) -> LoadedCase:
        image, properties = self._read(case, case.files)
        mask = create_nonzero_mask(image[self._channels(case.available)])
        missing = ~np.all([self._channels(subset) for subset in case.subsets], axis=0)
        truth, box = None, tuple[slice, ...]()
        if self._scores and (all(case.available) or len(case.all_files) > len(case.files)):
            whole = image if case.all_files == case.files else self._read(case, case.all_files)[0]
            data, _, whole_properties = UniMRSegPreprocessor(verbose=False).run_case_npy(
                whole, None, properties.copy(), self._plans, self._configuration, self.model.dataset_json
            )
            known = np.flatnonzero(missing & self._channels(whole_properties["available_modalities"])).tolist()
            truth = np.full_like(whole, np.nan)
            truth[known] = self._to_original_grid(data[known], whole_properties, known)
            box = crop_box(whole_properties, self._plans)
        return LoadedCase(image, properties, truth, box, middle_of_content(mask))

    def _channels(self, subset: Sequence[bool]) -> list[bool]:
        return list(self.model.modalities.expand(subset))

    def _read(self, case: Case, files: Sequence[str]) -> tuple[np.ndarray, ImageProperties]:
        read = read_usable_case(case.name, files, self._reader(), self.model.modalities, self._ending)
        return read.image, read.properties

    def _to_original_grid(self, image: np.ndarray, properties: ImageProperties, channels: Sequence[int]) -> np.ndarray:
        outside = [self._normalisers[channel].outside for channel in channels]
        return to_original_grid(image, properties, self._plans, self._configuration, outside)

    def predict(self, entry: PreprocessedCase | FailedCase) -> tuple[PreprocessedCase, Tensor] | FailedCase:
        """Return a case with all its channels reconstructed on the preprocessed grid."""
        if isinstance(entry, FailedCase):
            return entry
        try:
            return entry, self.model.predict_logits_from_preprocessed_data(entry.data)
        except Exception as error:
            return FailedCase(entry.case, entry.subset, in_one_line(error))

    def export(self, predicted: tuple[PreprocessedCase, Tensor] | FailedCase) -> ReconstructedCase | FailedCase:
        """Bring a reconstruction back to the original grid, score it and write what the case lacks."""
        if isinstance(predicted, FailedCase):
            return predicted
        entry, reconstruction = predicted
        try:
            return self._score_and_write(entry, reconstruction)
        except UserError:  # a full disk or the like stops the other cases too
            raise
        except Exception as error:
            return FailedCase(entry.case, entry.subset, in_one_line(error))

    def _score_and_write(self, entry: PreprocessedCase, reconstruction: Tensor) -> ReconstructedCase:
        case, loaded, names = entry.case, entry.loaded, self.model.modalities.channel_names
        missing = [channel for channel, present in enumerate(self._channels(entry.subset)) if not present]
        images = self._to_original_grid(reconstruction[missing].float().cpu().numpy(), entry.properties, missing)
        rows: list[dict[str, Any]] = []
        slices = {}
        for channel, image, scores in zip(missing, images, self._score(images, loaded, missing), strict=True):
            target = case.targets.get(channel)
            if target is not None:
                written = self._write(target, channel, image, entry)
                image = written if loaded.truth is None else image
            rows.append(
                {
                    "case": case.name,
                    "available": self.model.modalities.describe(entry.subset),
                    "modality": names[channel],
                    "file": None if target is None else str(target),
                    **scores,
                }
            )
            slices[channel] = image[loaded.slice_index].copy()
        return ReconstructedCase(case, entry.subset, loaded, rows, slices)

    def _score(self, images: np.ndarray, loaded: LoadedCase, missing: Sequence[int]) -> list[dict[str, float]]:
        if loaded.truth is None:
            return [dict.fromkeys(METRICS, np.nan)] * len(missing)
        box = (slice(None), *loaded.box)
        pair = images[box], loaded.truth[missing][box]
        reconstruction, truth = (torch.from_numpy(np.ascontiguousarray(array)) for array in pair)
        return reconstruction_scores(reconstruction, truth, self.model.ssim_window)

    def _write(self, path: Path, channel: int, image: np.ndarray, entry: PreprocessedCase) -> np.ndarray:
        """Write one modality, and return it in the units in which it was written."""
        loaded = entry.loaded
        if self._intensities:
            mask = create_nonzero_mask(loaded.image[self._channels(entry.subset)])
            statistics = None if self._statistics is None else self._statistics[channel]
            image = self._normalisers[channel].invert(image, mask, statistics)
        inputs = self.model.modalities.describe(entry.subset)
        description = header_description(inputs, intensities=self._intensities)
        write_image(path, image, self._reader, loaded.properties, description, self._first_available(entry))
        return image

    def _first_available(self, entry: PreprocessedCase) -> Path:
        files = entry.case.files
        channels = assign_channels(files, self.model.modalities, self._ending)[0] or range(len(files))
        available = [pair for pair in zip(channels, files, strict=True) if self._channels(entry.subset)[pair[0]]]
        return Path(min(available, default=(0, files[0]))[1])  # none where one file holds several channels
