"""`reconstruct`: writes the modalities that cases lack, and scores reconstructions where the truth is known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from nnunetv2_unimrseg.data.cases import Files
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.options import InferenceOptions
from nnunetv2_unimrseg.inference.reconstructor import Reconstructor
from nnunetv2_unimrseg.method.reconstruction_metrics import METRICS
from nnunetv2_unimrseg.nnunet.checkpoints import weights_sha256
from nnunetv2_unimrseg.nnunet.trained_model import Fold
from nnunetv2_unimrseg.reconstruction.case_reconstructor import CaseReconstructor, FailedCase, ReconstructedCase
from nnunetv2_unimrseg.reconstruction.case_results import Row, write_case_results
from nnunetv2_unimrseg.reconstruction.normalisers import check_invertible, read_normalisers
from nnunetv2_unimrseg.reconstruction.planning import Case, plan_cases
from nnunetv2_unimrseg.reconstruction.reconstruction_folder import start_or_continue
from nnunetv2_unimrseg.reconstruction.training_intensities import training_intensities
from nnunetv2_unimrseg.reconstruction.writing import check_format
from nnunetv2_unimrseg.utils.threads import prefetch


@dataclass(frozen=True)
class Reconstructions:
    """What `reconstruct` made.

    Attributes:
        table: one row a case x available modalities x missing modality: `case`, `available` ("T1+FLAIR"), `modality`,
            `file` (None where none was to be written), and `L1` (normalised units), `PSNR` (dB), `SSIM` (NaN where the
            truth is not known).
        failures: cases that failed, each with `case`, `subset` and `reason`.
        folder: where the files are.
    """

    table: pd.DataFrame
    failures: list[dict[str, str]]
    folder: Path


COLUMNS = ("case", "available", "modality", "file", *METRICS)


def reconstruct(
    images: Files,
    output: str | os.PathLike[str],
    model_folder: str | os.PathLike[str],
    folds: Sequence[Fold] | None = (0, 1, 2, 3, 4),
    *,
    modalities: Sequence[str | int] | None = None,
    intensities: bool = False,
    scores: bool = True,
    overwrite: bool = False,
    skip_done: bool = False,
    options: InferenceOptions | None = None,
) -> Reconstructions:
    """Reconstruct the modalities that each case lacks with a stage-1 model; score them where the truth is known.

    For each missing modality `CASE_XXXX<ending>` is written to `output`, synthetic, in the geometry of the case's
    first available file, and for each case a picture, `CASE_reconstruction.png`. A case that lacks nothing is
    reconstructed from each missing pattern (`missing_patterns`) and scored; no image of it is written.

    *How scores are made.* Files are left out before preprocessing, so the reconstruction cannot depend on them.
    Reconstruction and truth are compared in normalised units on the original grid. The truth is the image after
    preprocessing together with all other images of the case, which is the target of stage 1. It is brought back to
    the original grid in the same way as the reconstruction, so both have gone through the same resampling. They are
    compared inside the box that preprocessing keeps of all the case's images. Preprocessing crops the available
    images more tightly where they are zero at the borders of that box. There the reconstruction is constant (see
    `normalisers`), which counts as its error.

    Args:
        images: a folder, its files named `CASE_XXXX<ending>`, any subset a case; or the files of each case.
        output: the folder to write to, not one that holds inputs.
        model_folder: the folder that holds `fold_X`, of UniMRSegStage1Trainer.
        folds: the folds whose reconstructions are averaged; None for all that are trained.
        modalities: reconstruct from these only, as if the other files were absent (they are the truth then).
        intensities: write raw intensities instead of normalised units. The averages of the training set stand for the
            mean, deviation or range of the scan that does not exist (see `normalisers`, `training_intensities`).
        scores: whether to score.
        overwrite: replace existing files in `output`; without it, they are an error.
        skip_done: leave out the cases whose files are in `output` and whole; replace existing files of the others.
        options: how to reconstruct; None: the defaults.

    Returns:
        What was reconstructed in this call. Cases that failed do not stop the others.

    Raises:
        UserError: before anything is computed: no stage-1 model, bad or unreadable input (all problems at once), files
            that would be overwritten, an output folder that cannot be written to or holds scans, a normaliser that
            cannot be inverted, a file format that cannot hold normalised units, training intensities that are neither
            kept nor can be measured. Later, when a file cannot be written.
    """
    options, output = options or InferenceOptions(), Path(output)
    if overwrite and skip_done:
        raise UserError("Give --overwrite, which replaces finished cases, or --c, which leaves them out, not both.")
    model = options.create(Reconstructor)
    model.initialize_from_trained_model_folder(Path(model_folder), folds, options.checkpoint)
    reader, ending = model.plans_manager.image_reader_writer_class, model.dataset_json["file_ending"]
    chosen = None if modalities is None else model.modalities.subset(modalities)
    cases = plan_cases(
        images, output, model.modalities, reader(), ending, chosen=chosen, scores=scores, overwrite=overwrite,
        skip_done=skip_done, part=options.part, show_progress=options.show_progress,
    )  # fmt: skip
    written = sorted({channel for case in cases for channel in case.targets})
    statistics = None
    if written:
        check_format(reader, ending, intensities=intensities)
    if written and intensities:
        statistics = _training_statistics(model, Path(model_folder), written, options)
    settings = _settings(model, options, chosen, intensities)
    start_or_continue(output, settings, overwrite=overwrite)
    for case in cases:
        if case.subsets:
            case.montage.unlink(missing_ok=True)
        else:
            print(f"{case.name}: nothing missing, nothing to do without scores")
    reconstructor = CaseReconstructor(model, intensities=intensities, scores=scores, statistics=statistics)
    rows, failures = _run(reconstructor, cases, output, settings, options)
    return Reconstructions(pd.DataFrame(rows, columns=list(COLUMNS)), failures, output)


def _training_statistics(
    model: Reconstructor, model_folder: Path, written: Sequence[int], options: InferenceOptions
) -> list[dict[str, float]] | None:
    normalisers = read_normalisers(model.plans_manager, model.configuration_manager)
    check_invertible({model.modalities.channel_names[channel]: normalisers[channel] for channel in written})
    if not any(normalisers[channel].needs_statistics for channel in written):
        return None
    return training_intensities(
        model_folder, model.plans_manager, model.configuration_manager, model.modalities, 
        num_threads=options.num_threads_preprocessing, show_progress=options.show_progress,
    )  # fmt: skip


def _settings(
    model: Reconstructor, options: InferenceOptions, chosen: Sequence[bool] | None, intensities: bool
) -> dict[str, Any]:
    """Return everything that changes the reconstructions, as JSON types."""
    return {
        "model": {
            "dataset": model.plans_manager.dataset_name,
            "trainer": model.trainer_name,
            "plans": model.plans_manager.plans_name,
            "checkpoint": options.checkpoint,
            "weights_sha256": [weights_sha256(weights) for weights in model.list_of_parameters],
        },
        "mirroring": options.use_mirroring,
        "step_size": options.step_size,
        "only_from": None if chosen is None else model.modalities.describe(chosen),
        "units": "training-set intensities" if intensities else "normalised",
    }


def _run(
    reconstructor: CaseReconstructor,
    cases: Sequence[Case],
    output: Path,
    settings: dict[str, Any],
    options: InferenceOptions,
) -> tuple[list[Row], list[dict[str, str]]]:
    """Reconstruct the cases, while threads preprocess those to come and export those that are reconstructed."""
    rows: list[Row] = []
    failures: list[dict[str, str]] = []
    done: dict[str, list[ReconstructedCase | FailedCase]] = {case.name: [] for case in cases}
    total = sum(len(case.subsets) for case in cases)
    progress = tqdm(total=total, desc="Reconstructing", disable=not options.show_progress)

    def collect(result: ReconstructedCase | FailedCase) -> None:
        progress.update()
        case = result.case
        done[case.name].append(result)
        if len(done[case.name]) == len(case.subsets):
            modalities = reconstructor.model.modalities
            case_rows, problems = write_case_results(case, done.pop(case.name), modalities, output, settings)
            rows.extend(case_rows)
            failures.extend(problems)

    with progress, ThreadPoolExecutor(max(options.num_threads_export, 1)) as pool:
        waiting: list[Future[ReconstructedCase | FailedCase]] = []
        try:
            producers = [partial(reconstructor.preprocess, case) for case in cases if case.subsets]
            for entry in prefetch(producers, options.num_threads_preprocessing):
                progress.set_postfix_str(entry.case.name)
                waiting.append(pool.submit(reconstructor.export, reconstructor.predict(entry)))
                while len(waiting) > 2 * options.num_threads_export:
                    collect(waiting.pop(0).result())
            for future in waiting:
                collect(future.result())
        except BaseException:  # also Ctrl-C: exports that have begun are finished, waiting ones are not
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return rows, failures
