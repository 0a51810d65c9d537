"""Predict and score every subset of the modalities: `evaluate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.errors import UserError, listed, nearest
from nnunetv2_unimrseg.evaluation.cases import EvaluationCase, cases_of_folders, check_label_values, validation_cases
from nnunetv2_unimrseg.evaluation.collect import TRAINED_WITH, collect
from nnunetv2_unimrseg.evaluation.conventions import BRATS, EMPTY_CONVENTIONS
from nnunetv2_unimrseg.evaluation.evaluation import EXTERNAL, VALIDATION, Evaluation, Failure, PredictionEntry
from nnunetv2_unimrseg.evaluation.files import remove_report, start_or_continue, write_evaluation
from nnunetv2_unimrseg.evaluation.in_checkpoint import store_evaluation
from nnunetv2_unimrseg.evaluation.model import Model, read_model
from nnunetv2_unimrseg.evaluation.prediction import is_done, predict_and_score
from nnunetv2_unimrseg.evaluation.subsets import ALL, parse_subsets
from nnunetv2_unimrseg.inference.options import InferenceOptions
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.nnunet.trained_model import Fold
from nnunetv2_unimrseg.utils.output_folder import ANOTHER, check_output_folder

Folder = str | os.PathLike[str]

DEFAULT_FOLDER = (
    "An evaluation is written into the model's folder unless another output folder is given (-o): give one."
)
"""Advice where the model's folder cannot be written to: containers and shared models are read-only."""

MOST_NAMED_FAILURES = 5


def evaluate(
    model_folder: Folder,
    folds: Sequence[Fold] = (0, 1, 2, 3, 4),
    *,
    images: Folder | None = None,
    labels: Folder | None = None,
    output: Folder | None = None,
    subsets: Sequence[str] = (ALL,),
    empty: str = BRATS,
    overwrite: bool = False,
    store: bool = True,
    options: InferenceOptions | None = None,
) -> Evaluation:
    """Predict cases with every subset of their modalities, the other files left out before preprocessing, and score.

    A second call with the same arguments goes on where an interrupted one stopped. The segmentations, `subsets.csv` and
    `summary.json` are written to `output`; `reports.evaluation.write_report` adds tables, plots and the page.

    Args:
        model_folder: the folder that holds `fold_X`, of any nnU-Net trainer that segments. One that does not know of
            missing modalities sees zeros, after normalisation, in their channels.
        folds: without `images` each fold's model predicts the cases it was validated with (all cases are then
            listed together); with `images` the folds' predictions are averaged.
        images: folder of cases to evaluate instead, named as for prediction.
        labels: folder of their references, `CASE<ending>`.
        output: folder to write to; None is `evaluation_folds_...` in `model_folder`. Needed with `images`.
        subsets: "all", "single", "leave-one-out", "complete", or by name as "T1+FLAIR". A case that lacks a modality
            itself is left out of the subsets that hold it.
        empty: convention for empty labels, "brats", "skip" or "nan" (see `conventions`). Changing it does not predict
            anew.
        overwrite: remove an evaluation that lies in `output`, instead of going on with it.
        store: also store the result in the checkpoints, for prediction reports (models of this package only).
        options: how to predict; of several parts the one that finds all cases done writes the tables. None: the
            defaults.

    Returns:
        The evaluation, with the cases that could not be scored in `failures`. Where other parts have yet to do some
        (`unfinished`), it holds what is done, and no tables were written.

    Raises:
        UserError: before anything is computed, for every mistake in the arguments, the model or the cases, and for an
            output folder that cannot be written to or overlaps with an input; and when nothing could be scored.
    """
    names = [str(fold) for fold in folds]
    options = options or InferenceOptions()
    _check_arguments(options, empty, overwrite, images, labels, output)
    model = read_model(Path(model_folder), names, options.checkpoint, together=images is not None or len(names) == 1)
    chosen = _by_name(parse_subsets(subsets, model.modalities), model.modalities)
    if images is not None and labels is not None:
        kind, cases = EXTERNAL, cases_of_folders(images, labels, model.dataset_json, names)
    else:
        kind, cases = VALIDATION, validation_cases(model.plans, model.entry["configuration"], model.dataset_json, names)
        if "all" in names:
            print(f"WARNING: these are the {TRAINED_WITH}.")
    folder = Path(output) if output is not None else model.folder / f"evaluation_folds_{'_'.join(names)}"
    inputs = [read for read in (images, labels) if read is not None]
    check_output_folder(folder, inputs, DEFAULT_FOLDER if output is None else ANOTHER)
    to_do = _find_work(cases[options.part], chosen, folder, model, everything=overwrite)
    left = [case for case, missing in to_do.items() if missing]
    check_label_values(left, model.plans, model.dataset_json, show_progress=options.show_progress)
    prediction: PredictionEntry = {"mirroring": options.use_mirroring, "step_size": options.step_size}
    start_or_continue(folder, {"model": model.entry, "prediction": prediction, "kind": kind}, overwrite=overwrite)

    predict_and_score(model, to_do, chosen, folder, options)

    prediction["device"] = torch.device(options.device).type
    evaluation = collect(folder, model, cases, chosen, kind=kind, empty=empty, prediction=prediction)
    if evaluation.unfinished:
        return evaluation
    if evaluation.scores.empty:
        raise UserError(_nothing_scored(evaluation.failures))
    remove_report(folder)
    write_evaluation(evaluation, folder)
    if store and model.knows_missing:
        _store(evaluation, model)
    return evaluation


def _check_arguments(
    options: InferenceOptions,
    empty: str,
    overwrite: bool,
    images: Folder | None,
    labels: Folder | None,
    output: Folder | None,
) -> None:
    if empty not in EMPTY_CONVENTIONS:
        raise UserError(
            f"The convention for empty labels is one of {', '.join(EMPTY_CONVENTIONS)}; found '{empty}'."
            f"{nearest(empty, EMPTY_CONVENTIONS)}"
        )
    if overwrite and options.num_parts > 1:
        raise UserError(
            "With --overwrite each part would remove what the others have done. Remove the folder by hand first."
        )
    if (images is None) != (labels is None):
        raise UserError("Cases of your own need both: their images (-i) and their labels (-l).")
    if images is not None and output is None:
        raise UserError("Where to write the evaluation of cases of your own? Name a folder (-o).")


def _by_name(subsets: Sequence[Subset], modalities: Modalities) -> dict[str, Subset]:
    named = {modalities.describe(subset): subset for subset in subsets}
    if len(named) < len(subsets):
        raise UserError(
            f"The modalities' names ({', '.join(modalities)}) joined by '+' mean several subsets. Rename one of them "
            "in dataset.json."
        )
    return named


def _find_work(
    cases: Sequence[EvaluationCase], subsets: Mapping[str, Subset], folder: Path, model: Model, *, everything: bool
) -> dict[EvaluationCase, list[str]]:
    """Return the names of the subsets that each case has yet to be predicted with, or of all of them."""
    reader = PlansManager(model.plans).image_reader_writer_class()
    ending = model.dataset_json["file_ending"]
    return {
        case: [name for name in subsets if everything or not is_done(folder, case, name, ending, reader)]
        for case in cases
    }


def _nothing_scored(failures: Sequence[Failure]) -> str:
    if not failures:
        return "Nothing could be scored: no case has all modalities of any of these subsets."
    reasons = [f"{entry['case']}, {entry['subset']}: {entry['reason']}" for entry in failures]
    return f"Nothing could be scored. {len(reasons)} predictions failed:\n{listed(reasons, MOST_NAMED_FAILURES)}"


def _store(evaluation: Evaluation, model: Model) -> None:
    """Store the result in the checkpoints; where that fails, the evaluation in its folder is complete all the same."""
    for fold, checkpoint in model.checkpoints.items():
        try:
            message = (
                store_evaluation(checkpoint, evaluation, fold) or f"Stored in {checkpoint}, for prediction reports."
            )
        except UserError as error:
            message = f"WARNING: {error}"
        print(message)
