"""Predicting and scoring cases with subsets: threads prepare and score while the network computes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from torch import Tensor
from tqdm import tqdm

from nnunetv2_unimrseg.data.reading import check_intensities, raise_for_case, read_case
from nnunetv2_unimrseg.data.subset_preprocessing import preprocess_subsets
from nnunetv2_unimrseg.data.whole_image import segmentation_problem
from nnunetv2_unimrseg.errors import UserError, in_one_line
from nnunetv2_unimrseg.evaluation.cases import EvaluationCase
from nnunetv2_unimrseg.evaluation.metrics import score_segmentation
from nnunetv2_unimrseg.evaluation.evaluation import prediction_path
from nnunetv2_unimrseg.evaluation.settings import label_values
from nnunetv2_unimrseg.evaluation.files import Record, read_record, write_record
from nnunetv2_unimrseg.inference.options import InferenceOptions
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.utils.background import in_background


@dataclass(frozen=True)
class _Input:
    """A case with one subset, ready for the network (`data`), or why there is nothing to predict (`record`)."""

    subset: str
    case: EvaluationCase
    data: Tensor | None = None
    properties: dict | None = None
    reference: np.ndarray | None = None
    record: Record | None = None


def predict_and_score(
    model_folder: Path,
    pending: Mapping[EvaluationCase, Sequence[str]],
    subsets: Mapping[str, Subset],
    folder: Path,
    options: InferenceOptions,
) -> None:
    """Write a segmentation and a record of raw scores for every case and subset that is pending.

    What goes wrong with a case is written into its record and does not stop the others.

    Args:
        model_folder: holds `fold_X`.
        pending: names of the subsets to do, by case; a case that is done has none.
        subsets: by name.
        folder: of the evaluation.
        options: how to predict.
    """
    total = len(pending) * len(subsets)
    done = total - sum(map(len, pending.values()))
    with tqdm(total=total, initial=done, desc="Evaluating", disable=not options.show_progress) as progress:
        for folds in dict.fromkeys(case.fold for case, names in pending.items() if names):
            predictor = load_predictor(model_folder, folds.split("+"), options)
            inputs = in_background(
                [
                    partial(_prepare, predictor, case, {name: subsets[name] for name in names})
                    for case, names in pending.items()
                    if case.fold == folds and names
                ],
                options.num_threads_preprocessing,
            )
            _run(predictor, inputs, folder, options, progress)


def is_pending(folder: Path, case: EvaluationCase, subset: str, file_ending: str, reader: BaseReaderWriter) -> bool:
    """Whether a case has yet to be predicted and scored with a subset; a segmentation must be there and whole."""
    record = read_record(folder, case, subset)
    if record is None or record.problem:
        return True
    if not record.scores:  # the case itself lacks a modality of the subset
        return False
    path = prediction_path(folder, case.name, subset, file_ending)
    problem = segmentation_problem(path, reader)
    if problem:
        print(f"{path} is not whole: {problem}. The case is predicted again.")
    return problem is not None


def load_predictor(model_folder: Path, folds: Sequence[str], options: InferenceOptions) -> UniMRSegPredictor:
    """Load the folds of a model of any nnU-Net trainer that segments."""
    with contextlib.redirect_stdout(io.StringIO()):  # without CUDA, nnU-Net tells of an option that nobody gave
        predictor = UniMRSegPredictor(
            tile_step_size=options.step_size,
            use_mirroring=options.use_mirroring,
            perform_everything_on_device=options.perform_everything_on_device,
            device=options.device,
            allow_tqdm=False,
        )
    predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds), options.checkpoint, zero_fill=True)
    if predictor.configuration_manager.previous_stage_name is not None:
        raise UserError(
            "This model is the second stage of a cascade, whose input depends on what the first made of each subset; "
            "that cannot be evaluated. Evaluate the first stage, or a model without cascade."
        )
    if options.device.type == "cpu" and isinstance(predictor.network, MissingModalityUNet):
        volumes = len(predictor.configuration_manager.patch_size) == 3
        predictor.network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
    return predictor


def _prepare(predictor: UniMRSegPredictor, case: EvaluationCase, subsets: Mapping[str, Subset]) -> Iterator[_Input]:
    """Read a case once, and preprocess it for each subset that its own modalities allow."""
    left = dict(subsets)
    try:
        image, properties, reference = _read(predictor, case)
        present = check_intensities(image, predictor.modalities, [])
        for name, subset in subsets.items():
            if any(wanted and not there for wanted, there in zip(subset, present, strict=True)):
                left.pop(name)
                yield _Input(name, case, record=Record({}))
        prepared = preprocess_subsets(
            image, properties, dict(left), predictor.plans_manager, predictor.configuration_manager,
            predictor.dataset_json,
        )  # fmt: skip
        for name, data, of_subset in prepared:
            left.pop(name)
            yield _Input(name, case, data, of_subset, reference)
    except Exception as error:
        for name in left:
            yield _Input(name, case, record=Record({}, problem=in_one_line(error)))


def _read(predictor: UniMRSegPredictor, case: EvaluationCase) -> tuple[np.ndarray, dict, np.ndarray]:
    reader = predictor.plans_manager.image_reader_writer_class()
    problems: list[str] = []
    read = read_case(list(case.files), reader, predictor.modalities, predictor.dataset_json["file_ending"], problems)
    if read is not None:
        check_intensities(read.image, predictor.modalities, problems)
    raise_for_case(case.name, problems)
    image, properties = read.image, read.properties
    reference = reader.read_seg(case.label)[0][0]
    if reference.shape != image.shape[1:]:
        raise UserError(f"The label {case.label} has the shape {reference.shape}, the images {image.shape[1:]}.")
    return image, properties, reference


def _run(
    predictor: UniMRSegPredictor, inputs: Iterator[_Input], folder: Path, options: InferenceOptions, progress: tqdm
) -> None:
    """Predict what comes in, and have it resampled, written and scored meanwhile; no more than a few wait for that."""
    threads = options.num_threads_export
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        waiting: list[Future] = []
        try:
            for entry in inputs:
                progress.set_description(f"{entry.case.name}, {entry.subset}")
                result = _predict(predictor, entry) if entry.record is None else entry.record
                waiting.append(pool.submit(_finish, predictor, entry, result, folder, progress))
                while len(waiting) > 2 * threads:
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        except BaseException:  # Ctrl-C and a full disk among them: what is begun is finished, what waits is not
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _predict(predictor: UniMRSegPredictor, entry: _Input) -> Tensor | Record:
    try:
        return predictor.predict_logits_from_preprocessed_data(entry.data)
    except Exception as error:
        return Record({}, problem=in_one_line(error))


def _finish(predictor: UniMRSegPredictor, entry: _Input, result: Tensor | Record, folder: Path, progress: tqdm) -> None:
    if isinstance(result, Tensor):
        try:
            result = _score(predictor, entry, result, folder)
        except UserError:  # nothing can be written; that would be so for the other cases too
            raise
        except Exception as error:
            result = Record({}, problem=in_one_line(error))
    write_record(folder, entry.case, entry.subset, result)
    progress.update()


def _score(predictor: UniMRSegPredictor, entry: _Input, logits: Tensor, folder: Path) -> Record:
    segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, entry.properties,
        num_threads_torch=torch.get_num_threads(),
    )  # fmt: skip
    path = prediction_path(folder, entry.case.name, entry.subset, predictor.dataset_json["file_ending"])
    path.parent.mkdir(parents=True, exist_ok=True)
    predictor.plans_manager.image_reader_writer_class().write_seg(segmentation, str(path), entry.properties)
    return Record(
        score_segmentation(
            entry.reference,
            segmentation,
            label_values(predictor.dataset_json, predictor.plans_manager.plans),
            entry.properties["spacing"],
            predictor.label_manager.ignore_label,
        )
    )
