"""Cases on their way through a predictor: other processes preprocess and export while the network computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunetv2_unimrseg.inference.jobs import Job, Setting
from nnunetv2_unimrseg.utils.files import remove_leftovers, whole_files
from nnunetv2_unimrseg.utils.processes import Workers


def predict_jobs(
    predictor: nnUNetPredictor,
    jobs: Sequence[Job],
    setting: Setting,
    *,
    num_processes_preprocessing: int,
    num_processes_export: int,
) -> list[Any]:
    """Predict cases one after another, in their order.

    Args:
        predictor: with a model.
        jobs: the cases.
        setting: the predictor's.
        num_processes_preprocessing: 0 preprocesses in this process.
        num_processes_export: 0 exports in this process.

    Returns:
        An entry for each case: None where it was written, else the segmentation `(X, Y, Z)`, with probabilities a
        pair of it and the probabilities `(classes, X, Y, Z)`.

    Raises:
        UserError: when a segmentation cannot be written whole, or a process is killed. What was finished stays.
    """
    preparing = Workers(min(num_processes_preprocessing, len(jobs)), "Use fewer processes for preprocessing (-npp).")
    exporting = Workers(min(num_processes_export, len(jobs)), "Use fewer processes for export (-nps).")
    exports: list[Future[Any]] = []
    try:
        with preparing, exporting:
            for number, (job, data, properties) in enumerate(_prepared(jobs, setting, preparing), start=1):
                print(f"Predicting {_name(job)} ({number} of {len(jobs)})", flush=True)
                logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu().numpy()
                exports.append(exporting.submit(export, logits, properties, setting, job.output))
                _wait_for_all_but(2 * exporting.count, exports, exporting)
            return [exporting.result(future) for future in exports]
    finally:
        for folder in {Path(job.output).parent for job in jobs if job.output is not None}:
            remove_leftovers(folder)
        compute_gaussian.cache_clear()
        empty_cache(predictor.device)


def _name(job: Job) -> str:
    return os.path.basename(job.files[0] if job.output is None else job.output)


def _prepared(
    jobs: Sequence[Job], setting: Setting, workers: Workers
) -> Iterator[tuple[Job, np.ndarray, dict[str, Any]]]:
    """Yield the cases in their order; no more than one a process waits."""
    left = iter(jobs)
    begun: deque[tuple[Job, Future[Any]]] = deque()
    while True:
        while len(begun) < max(workers.count, 1) and (job := next(left, None)) is not None:
            begun.append((job, workers.submit(preprocess, job, setting)))
        if not begun:
            return
        job, future = begun.popleft()
        yield job, *workers.result(future)


def _wait_for_all_but(most: int, exports: Sequence[Future[Any]], workers: Workers) -> None:
    """Wait until no more than so many exports are left to do, and raise what one of those that are done raised."""
    waiting = [future for future in exports if not future.done()]
    for future in waiting[: max(len(waiting) - most, 0)]:
        workers.result(future)
    for future in exports:
        if future.done():
            workers.result(future)


def preprocess(job: Job, setting: Setting) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the image `(C, X, Y, Z)` as the network takes it, float32, NaN in missing channels, and its properties.

    In a cascade the previous stage's segmentation follows it, a channel for each label.
    """
    preprocessor = setting.configuration_manager.preprocessor_class(verbose=setting.verbose)
    data, previous, properties = preprocessor.run_case(
        job.files, job.previous, setting.plans_manager, setting.configuration_manager, setting.dataset_json
    )
    if job.previous is not None:
        labels = setting.plans_manager.get_label_manager(setting.dataset_json).foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(previous[0], labels, data.dtype)))
    return np.ascontiguousarray(data, np.float32), properties


def export(logits: np.ndarray, properties: dict[str, Any], setting: Setting, output: str | None) -> Any:
    """Bring logits `(classes, X, Y, Z)` back to the image's grid, and write what is made of them or return it.

    Raises:
        UserError: when something cannot be written whole; then what was there before is unchanged.
    """
    if output is None:
        label_manager = setting.plans_manager.get_label_manager(setting.dataset_json)
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, setting.plans_manager, setting.configuration_manager, label_manager, properties,
            setting.save_probabilities, default_num_processes,
        )  # fmt: skip
    write = partial(
        export_prediction_from_logits, logits, properties, setting.configuration_manager, setting.plans_manager,
        setting.dataset_json,
    )  # fmt: skip
    if not setting.save_probabilities:  # the plans' writer writes the segmentation whole
        return write(output)
    path = Path(output)
    with whole_files(path.parent, failures=(RuntimeError,)) as folder:
        write(str(folder / path.name), True)
