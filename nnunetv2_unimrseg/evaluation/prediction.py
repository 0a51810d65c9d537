"""Predicting and scoring cases with subsets: threads prepare and score while the network computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from torch import Tensor
from tqdm import tqdm

from nnunetv2_unimrseg.data.reading import available_modalities, read_usable_case
from nnunetv2_unimrseg.data.subset_preprocessing import preprocess_subsets
from nnunetv2_unimrseg.data.whole_image import segmentation_problem
from nnunetv2_unimrseg.errors import UserError, in_one_line
from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.evaluation import prediction_path
from nnunetv2_unimrseg.evaluation.files import Outcome, read_outcome, write_outcome
from nnunetv2_unimrseg.evaluation.metrics import score_segmentation
from nnunetv2_unimrseg.evaluation.model import Model, label_values
from nnunetv2_unimrseg.inference.options import InferenceOptions
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.nnunet.trained_model import segmentation_checkpoints
from nnunetv2_unimrseg.nnunet.types import ImageProperties
from nnunetv2_unimrseg.utils.threads import prefetch


@dataclass(frozen=True)
class _Sample:
    """A case with one subset: the network's input or, once predicted, its logits; and the case's reference."""

    tensor: Tensor
    properties: ImageProperties
    reference: np.ndarray


_Input = tuple[EvaluationCase, str, _Sample | Outcome]
"""A case, the name of a subset, and what to predict, or why there is nothing to predict."""


def predict_and_score(
    model: Model,
    to_do: Mapping[EvaluationCase, Sequence[str]],
    subsets: Mapping[str, Subset],
    folder: Path,
    options: InferenceOptions,
) -> None:
    """Write the segmentation and the raw scores of every case and subset that is to be done.

    What goes wrong with a case is written into its outcome and does not stop the others.

    Args:
        model: the folds of a case predict it together.
        to_do: names of the subsets to predict, by case; none for a case that is done.
        subsets: by name.
        folder: of the evaluation.
        options: how to predict.
    """
    total = len(to_do) * len(subsets)
    done = total - sum(map(len, to_do.values()))
    with tqdm(total=total, initial=done, desc="Evaluating", disable=not options.show_progress) as progress:
        for folds in dict.fromkeys(case.fold for case, names in to_do.items() if names):
            predictor = _load_predictor(model, folds.split("+"), options)
            inputs = prefetch(
                [
                    partial(_prepare, predictor, case, {name: subsets[name] for name in names})
                    for case, names in to_do.items()
                    if case.fold == folds and names
                ],
                options.num_threads_preprocessing,
            )
            _predict_all(predictor, inputs, folder, options, progress)


def is_done(folder: Path, case: EvaluationCase, subset: str, file_ending: str, reader: BaseReaderWriter) -> bool:
    """Whether a case has been predicted and scored with a subset, and its segmentation is there and whole."""
    outcome = read_outcome(folder, case, subset)
    if outcome is None or outcome.problem:
        return False
    if not outcome.scores:  # the case itself lacks a modality of the subset
        return True
    path = prediction_path(folder, case.name, subset, file_ending)
    problem = segmentation_problem(path, reader)
    if problem:
        print(f"{path} is not whole: {problem}. The case is predicted again.")
    return problem is None


def _load_predictor(model: Model, folds: Sequence[str], options: InferenceOptions) -> UniMRSegPredictor:
    predictor = options.create(UniMRSegPredictor)
    checkpoints = model.in_memory or list(
        segmentation_checkpoints(model.folder, folds, options.checkpoint, any_trainer=True)
    )
    predictor.initialize_from_checkpoints(checkpoints, zero_fill=True)
    if predictor.device.type == "cpu" and isinstance(predictor.network, MissingModalityUNet):
        volumes = len(predictor.configuration_manager.patch_size) == 3
        predictor.network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
    return predictor


def _prepare(predictor: UniMRSegPredictor, case: EvaluationCase, subsets: Mapping[str, Subset]) -> Iterator[_Input]:
    """Read a case once, and preprocess it for each subset that its own modalities allow."""
    left = dict(subsets)
    try:
        image, properties, reference = _read(predictor, case)
        present, _ = available_modalities(image, predictor.modalities)
        for name, subset in subsets.items():
            if any(wanted and not there for wanted, there in zip(subset, present, strict=True)):
                left.pop(name)
                yield case, name, Outcome({})
        prepared = preprocess_subsets(
            image, properties, dict(left), predictor.plans_manager, predictor.configuration_manager,
            predictor.dataset_json,
        )  # fmt: skip
        for name, data, of_subset in prepared:
            left.pop(name)
            yield case, name, _Sample(data, of_subset, reference)
    except Exception as error:
        for name in left:
            yield case, name, Outcome({}, problem=in_one_line(error))


def _read(predictor: UniMRSegPredictor, case: EvaluationCase) -> tuple[np.ndarray, ImageProperties, np.ndarray]:
    reader = predictor.plans_manager.image_reader_writer_class()
    read = read_usable_case(case.name, case.files, reader, predictor.modalities, predictor.dataset_json["file_ending"])
    reference: np.ndarray = reader.read_seg(case.label)[0][0]
    if reference.shape != read.image.shape[1:]:
        raise UserError(f"The label {case.label} has the shape {reference.shape}, the images {read.image.shape[1:]}.")
    return read.image, read.properties, reference


def _predict_all(
    predictor: UniMRSegPredictor,
    inputs: Iterator[_Input],
    folder: Path,
    options: InferenceOptions,
    progress: tqdm[Any],
) -> None:
    """Predict what comes in while threads resample, write and score what was predicted; only a few results wait."""
    threads = options.num_threads_export
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        waiting: list[Future[None]] = []
        try:
            for case, subset, sample in inputs:
                progress.set_description(f"{case.name}, {subset}")
                predicted = _predict(predictor, sample)
                waiting.append(pool.submit(_finish, predictor, case, subset, predicted, folder, progress))
                while len(waiting) > 2 * threads:
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        except BaseException:  # such as Ctrl-C and a full disk: what has begun is finished, what waits is dropped
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _predict(predictor: UniMRSegPredictor, sample: _Sample | Outcome) -> _Sample | Outcome:
    if isinstance(sample, Outcome):
        return sample
    try:
        return replace(sample, tensor=predictor.predict_logits_from_preprocessed_data(sample.tensor))
    except Exception as error:
        return Outcome({}, problem=in_one_line(error))


def _finish(
    predictor: UniMRSegPredictor,
    case: EvaluationCase,
    subset: str,
    predicted: _Sample | Outcome,
    folder: Path,
    progress: tqdm[Any],
) -> None:
    if isinstance(predicted, Outcome):
        outcome = predicted
    else:
        path = prediction_path(folder, case.name, subset, predictor.dataset_json["file_ending"])
        outcome = _write_and_score(predictor, predicted, path)
    write_outcome(folder, case, subset, outcome)
    progress.update()


def _write_and_score(predictor: UniMRSegPredictor, predicted: _Sample, path: Path) -> Outcome:
    """Write the segmentation and return its scores, or what went wrong.

    Raises:
        UserError: when the segmentation cannot be written, as then no other one can be either.
    """
    try:
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
            predicted.tensor, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager,
            predicted.properties, num_threads_torch=torch.get_num_threads(),
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        predictor.plans_manager.image_reader_writer_class().write_seg(segmentation, str(path), predicted.properties)
        scores = score_segmentation(
            predicted.reference,
            segmentation,
            label_values(predictor.dataset_json, predictor.plans_manager.plans),
            predicted.properties["spacing"],
            predictor.label_manager.ignore_label,
        )
    except UserError:
        raise
    except Exception as error:
        return Outcome({}, problem=in_one_line(error))
    return Outcome(scores)
