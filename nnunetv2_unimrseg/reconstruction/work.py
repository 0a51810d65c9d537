"""One case on its way: read and preprocessed, reconstructed, brought back, scored, written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from torch import Tensor

from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor
from nnunetv2_unimrseg.data.reading import assign_channels, raise_for_case, read_case
from nnunetv2_unimrseg.data.subset_preprocessing import preprocess_subsets
from nnunetv2_unimrseg.errors import UserError, in_one_line
from nnunetv2_unimrseg.inference.reconstructor import Reconstructor
from nnunetv2_unimrseg.method.reconstruction_metrics import FIGURES, reconstruction_scores
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.reconstruction.geometry import crop_box, to_original_grid
from nnunetv2_unimrseg.reconstruction.intensities import normalisers_of
from nnunetv2_unimrseg.reconstruction.montage import middle_of_content
from nnunetv2_unimrseg.reconstruction.planning import Case
from nnunetv2_unimrseg.reconstruction.writing import description_of, write_image


@dataclass(frozen=True)
class Opened:
    """A case that was read; arrays are on the original grid, as the reader returns them.

    Attributes:
        image: (C, X, Y, Z) raw, of the files to reconstruct from.
        properties: the reader's.
        truth: (C, X, Y, Z) in normalised units, NaN where it is not known or not needed; None where nothing is scored.
        box: what preprocessing keeps of all the case's images.
        shown: the slice for the picture.
    """

    image: np.ndarray
    properties: dict
    truth: np.ndarray | None
    box: tuple[slice, ...]
    shown: int


@dataclass(frozen=True)
class Input:
    """A case with one subset, ready for the network, or the reason (`problem`) why it is not."""

    case: Case
    subset: Subset
    opened: Opened | None = None
    data: Tensor | None = None
    properties: dict | None = None
    problem: str = ""


@dataclass(frozen=True)
class Output:
    """What came of it.

    Attributes:
        rows: of the table that `reconstruct` returns.
        slices: (Y, X) of each missing channel; as written, or in normalised units where the truth is known.
    """

    case: Case
    subset: Subset
    opened: Opened | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    slices: dict[int, np.ndarray] = field(default_factory=dict)
    problem: str = ""


class Workshop:
    """Reconstructs cases with one model. `prepare` and `finish` may run in threads.

    What goes wrong with a case is a `problem`; only what cannot be written raises, UserError.

    Args:
        model: the model.
        intensities: whether files get raw intensities.
        scores: whether to score where the truth is known.
        measured: the training set's average parameters, by channel, where a normaliser's inverse needs them.
    """

    def __init__(
        self,
        model: Reconstructor,
        *,
        intensities: bool = False,
        scores: bool = True,
        measured: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        self.model = model
        self._intensities, self._scores, self._measured = intensities, scores, measured
        self._plans, self._configuration = model.plans_manager, model.configuration_manager
        self._normalisers = normalisers_of(self._plans, self._configuration)
        self._reader = self._plans.image_reader_writer_class
        self._ending = model.dataset_json["file_ending"]

    def prepare(self, case: Case) -> Iterator[Input]:
        """Read a case once and preprocess it for each of its subsets."""
        left = {self.model.modalities.describe(subset): subset for subset in case.subsets}
        try:
            opened = self._open(case)
            prepared = preprocess_subsets(
                opened.image, opened.properties, dict(left), self._plans, self._configuration, self.model.dataset_json
            )
            for name, data, properties in prepared:
                yield Input(case, left.pop(name), opened, data, properties)
        except Exception as error:
            for subset in left.values():
                yield Input(case, subset, problem=in_one_line(error))

    def _open(self, case: Case) -> Opened:
        image, properties = self._read(case, case.files)
        mask = create_nonzero_mask(image[list(case.available)])
        missing = ~np.all(case.subsets, axis=0)
        truth, box = None, ()
        if self._scores and (all(case.available) or len(case.all_files) > len(case.files)):
            whole = image if case.all_files == case.files else self._read(case, case.all_files)[0]
            data, _, of_whole = UniMRSegPreprocessor(verbose=False).run_case_npy(
                whole, None, dict(properties), self._plans, self._configuration, self.model.dataset_json
            )
            known = np.flatnonzero(missing & of_whole["available_modalities"])
            truth = np.full_like(whole, np.nan)
            truth[known] = self._to_original(data[known], of_whole, known)
            box = crop_box(of_whole, self._plans)
        return Opened(image, properties, truth, box, middle_of_content(mask))

    def _read(self, case: Case, files: Sequence[str]) -> tuple[np.ndarray, dict]:
        problems: list[str] = []
        read = read_case(files, self._reader(), self.model.modalities, self._ending, problems)
        raise_for_case(case.name, problems)
        return read.image, read.properties

    def _to_original(self, image: np.ndarray, properties: dict, channels: Sequence[int]) -> np.ndarray:
        outside = [self._normalisers[channel].outside for channel in channels]
        return to_original_grid(image, properties, self._plans, self._configuration, outside)

    def predict(self, entry: Input) -> Tensor | str:
        """Return all channels reconstructed on the preprocessed grid, or why they are not."""
        if entry.problem:
            return entry.problem
        try:
            return self.model.predict_logits_from_preprocessed_data(entry.data)
        except Exception as error:
            return in_one_line(error)

    def finish(self, entry: Input, reconstruction: Tensor | str) -> Output:
        """Bring a reconstruction back to the original grid, score it and write what the case lacks."""
        if isinstance(reconstruction, str):
            return Output(entry.case, entry.subset, problem=reconstruction)
        try:
            return self._finished(entry, reconstruction)
        except UserError:  # nothing can be written; that would be so for the other cases too
            raise
        except Exception as error:
            return Output(entry.case, entry.subset, problem=in_one_line(error))

    def _finished(self, entry: Input, reconstruction: Tensor) -> Output:
        case, opened, names = entry.case, entry.opened, self.model.modalities.names
        missing = [channel for channel, present in enumerate(entry.subset) if not present]
        images = self._to_original(reconstruction[missing].float().cpu().numpy(), entry.properties, missing)
        figures = self._score(images, opened, missing)
        rows, slices = [], {}
        for channel, image, of_channel in zip(missing, images, figures, strict=True):
            row = {"case": case.name, "available": self.model.modalities.describe(entry.subset)}
            row |= {"modality": names[channel], "file": None, **of_channel}
            if channel in case.targets:
                written = self._write(case.targets[channel], channel, image, entry)
                row["file"] = str(case.targets[channel])
                image = written if opened.truth is None else image
            rows.append(row)
            slices[channel] = image[opened.shown].copy()
        return Output(case, entry.subset, opened, rows, slices)

    def _score(self, images: np.ndarray, opened: Opened, missing: Sequence[int]) -> list[dict[str, float]]:
        if opened.truth is None:
            return [dict.fromkeys(FIGURES, np.nan)] * len(missing)
        box = (slice(None), *opened.box)
        pair = images[box], opened.truth[missing][box]
        ours, truth = (torch.from_numpy(np.ascontiguousarray(array)) for array in pair)
        return reconstruction_scores(ours, truth, self.model.ssim_window)

    def _write(self, path: Path, channel: int, image: np.ndarray, entry: Input) -> np.ndarray:
        """Write one modality, and return it in the units in which it was written."""
        opened = entry.opened
        if self._intensities:
            mask = create_nonzero_mask(opened.image[list(entry.subset)])
            measured = None if self._measured is None else self._measured[channel]
            image = self._normalisers[channel].invert(image, mask, measured)
        inputs = self.model.modalities.describe(entry.subset)
        description = description_of(inputs, intensities=self._intensities)
        write_image(path, image, self._reader, opened.properties, description, self._first_available(entry))
        return image

    def _first_available(self, entry: Input) -> Path:
        files = entry.case.files
        channels = assign_channels(files, self.model.modalities, self._ending, []) or range(len(files))
        available = [pair for pair in zip(channels, files, strict=True) if entry.subset[pair[0]]]
        return Path(min(available, default=(0, files[0]))[1])  # none where one file holds several channels
