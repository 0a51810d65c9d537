"""The report beside predictions, `report.json` and `report.html`: each case's modalities and the Dice to expect.

    predictor = UniMRSegPredictor()
    predictor.initialize_from_trained_model_folder(MODEL_FOLDER, use_folds=(0,))
    predictor.predict_from_files("PATIENTS", "SEGMENTATIONS")
    write_prediction_report("SEGMENTATIONS", predictor)

To have it written before anything is computed, as `unimrseg predict` does:

    predictor.predict_from_files("PATIENTS", "SEGMENTATIONS", before_predicting=prediction_reporter(predictor))

`report.json` holds `format`, `updated`, `versions`, `models` (by a
short id: `EvaluatedModel.description`, `prediction`, `evaluation`, `why_no_evaluation`, `evaluate_with`, `cautions`)
and `cases` (by name: `available`, `missing`, `subset`, `model`, `time`, `expected_dice` and `flags`).
Cases that were predicted before stay in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.data.cases import AVAILABILITY_NAME as MODALITIES_NAME
from nnunetv2_unimrseg.data.cases import print_availability
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.conventions import DESCRIPTIONS, FAILURE_DICE
from nnunetv2_unimrseg.evaluation.evaluation import VALIDATION
from nnunetv2_unimrseg.evaluation.expected_dice import (
    FREQUENT_FAILURE,
    LARGE_DROP,
    LOW_DICE,
    EvaluatedModel,
    describe_evaluated_model,
)
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.inference.predictor import BeforePredicting, UniMRSegPredictor
from nnunetv2_unimrseg.nnunet.trained_model import Fold, segmentation_checkpoints
from nnunetv2_unimrseg.reports.case_remarks import NOT_EVALUATED, WEAK, Cases, expected_for_cases, remarks
from nnunetv2_unimrseg.reports.html import render
from nnunetv2_unimrseg.utils.file_lock import locked
from nnunetv2_unimrseg.utils.files import read_json, write_json, write_text
from nnunetv2_unimrseg.utils.versions import package_versions

REPORT_NAME, PAGE_NAME = "report.json", "report.html"
FORMAT = 1


def write_prediction_report(
    folder: str | Path,
    model: UniMRSegPredictor | EvaluatedModel | str | Path,
    cases: Cases | None = None,
    *,
    folds: Sequence[Fold] | Fold | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    prediction: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `report.json` and `report.html` into the folder of the segmentations; other cases in the report are kept.

    Args:
        folder: where the segmentations are, or will be.
        model: the model that predicts: a predictor that loaded it from its folder, that folder, or what
            `describe_evaluated_model` returns.
        cases: by name, `{"available": [...], "missing": [...]}`; None for all in the folder's `modalities.json`.
        folds: with a model's folder: the folds that predict; None for all that are trained.
        checkpoint_name: with a model's folder: the file of each fold.
        prediction: `mirroring` and `step_size` of the prediction; a predictor's own by default.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: when a checkpoint's weights changed since its evaluation was stored, or `report.json` is not ours.
    """
    folder = Path(folder)
    if isinstance(model, UniMRSegPredictor):
        prediction = prediction or _prediction(model)
    if not isinstance(model, EvaluatedModel):
        model = evaluated_model(model, folds, checkpoint_name)
    cases = read_json(folder / MODALITIES_NAME) if cases is None else cases
    path = folder / REPORT_NAME
    with locked(path):
        report = _merge(_read_existing(path), model, cases, prediction or {})
        write_json(path, report)
        write_text(folder / PAGE_NAME, render("prediction.html.j2", **page_context(report)))
    return report


def evaluated_model(
    model: UniMRSegPredictor | str | Path,
    folds: Sequence[Fold] | Fold | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
) -> EvaluatedModel:
    """Describe the model of a predictor, or of a model folder, and read its stored evaluation.

    Raises:
        UserError: when its weights changed since its evaluation was stored, or a predictor's are not from a file.
    """
    if not isinstance(model, UniMRSegPredictor):
        folds = [folds] if isinstance(folds, str | int) else folds
        return describe_evaluated_model(segmentation_checkpoints(Path(model), folds, checkpoint_name))
    if not model.checkpoints:
        raise UserError(
            "The predictor's model was not loaded from a folder, so there is no evaluation of it to report. Load one "
            "with initialize_from_trained_model_folder."
        )
    return describe_evaluated_model(model.checkpoints)


def prediction_reporter(predictor: UniMRSegPredictor) -> BeforePredicting:
    """Return a function for `before_predicting` that prints the Dice to expect of each case and writes the report.

    Raises:
        UserError: as `evaluated_model`.
    """
    model = evaluated_model(predictor)
    if model.evaluation is None:
        print(f"What Dice to expect is not known: {model.why_none}. To know it: {model.evaluate_with}")

    def report(folder: Path | None, cases: Cases) -> None:
        print_availability(cases, remarks(model, cases))
        if folder is not None:
            write_prediction_report(folder, model, cases, prediction=_prediction(predictor))

    return report


def _prediction(predictor: UniMRSegPredictor) -> dict[str, Any]:
    return {"mirroring": predictor.use_mirroring, "step_size": predictor.tile_step_size}


def _read_existing(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    report = read_json(path)
    if report.get("format") != FORMAT or not {"models", "cases"} <= report.keys():
        raise UserError(
            f"{path} is no prediction report of this version, so no case can be added to it. Move it away, or predict "
            "into another folder."
        )
    return report


def _merge(
    before: Mapping[str, Any], model: EvaluatedModel, cases: Cases, prediction: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report with these cases added; earlier cases of the same model get its current evaluation."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    described = _describe_model(model, prediction)
    identity = _model_id(described)
    entries = dict(before.get("cases", {}))
    added = {name: case for name, case in entries.items() if case["model"] == identity}
    added |= {name: {**case, "time": now} for name, case in cases.items()}
    expected = expected_for_cases(model, added)
    for name, case in added.items():
        rows, flags = expected[tuple(case["available"])]
        entries[name] = {
            **{key: list(case[key]) for key in ("available", "missing")},
            "subset": "+".join(case["available"]),
            "model": identity,
            "time": case["time"],
            "expected_dice": rows,
            "flags": flags,
        }
    used = {case["model"] for case in entries.values()}
    models = {**before.get("models", {}), identity: described}
    return {
        "format": FORMAT,
        "updated": now,
        "versions": package_versions("nnunetv2", "torch"),
        "models": {key: models[key] for key in models if key in used},
        "cases": {name: entries[name] for name in sorted(entries)},
    }


def _model_id(described: Mapping[str, Any]) -> str:
    """Return a short id of a model together with its prediction settings."""
    text = json.dumps([described["weights_sha256"], described["prediction"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _describe_model(model: EvaluatedModel, prediction: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {**model.description, "modalities": list(model.modalities)}
    described |= {"prediction": dict(prediction), "evaluation": None}
    if model.evaluation is None:
        described["why_no_evaluation"] = model.why_none
    else:
        names = ("kind", "folds", "num_cases", "labels", "conventions", "prediction", "versions")
        described["evaluation"] = {name: getattr(model.evaluation, name) for name in names}
    return {**described, "evaluate_with": model.evaluate_with, "cautions": _cautions(model, prediction)}


def _cautions(model: EvaluatedModel, prediction: Mapping[str, Any]) -> list[str]:
    """Return the reasons why the expected Dice may be wrong for these predictions."""
    evaluation = model.evaluation
    if evaluation is None:
        return []
    found = []
    if evaluation.kind == VALIDATION and "all" in evaluation.folds:
        found.append("Fold 'all' was evaluated on its own training cases: expect a lower Dice than this report says.")
    if evaluation.kind == VALIDATION and len(evaluation.folds) > 1:
        found.append("Each fold was evaluated alone, on its own validation cases; here their predictions are averaged.")
    for name, words in (("mirroring", "mirrored images"), ("step_size", "step of the sliding window")):
        one, other = evaluation.prediction.get(name), prediction.get(name)
        if one is not None and other is not None and one != other:
            found.append(f"The evaluation used another setting ({words}: {one}) than these predictions ({other}).")
    return found


def page_context(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the template of `report.html`."""
    models, cases = report["models"], report["cases"]
    flagged = {
        kind: sum(any(flag["kind"] == kind for flag in case["flags"]) for case in cases.values())
        for kind in (WEAK, NOT_EVALUATED)
    }
    return {
        "report": report,
        "modalities": list(dict.fromkeys(name for model in models.values() for name in model["modalities"])),
        "subsets": _subsets(cases),
        "num_incomplete": sum(bool(case["missing"]) for case in cases.values()),
        "flagged": flagged,
        "several_labels": any(len(case["expected_dice"]) > 1 for case in cases.values()),
        "known": any(model["evaluation"] for model in models.values()),
        "conventions": DESCRIPTIONS,
        "rule": {"drop": LARGE_DROP, "low": LOW_DICE, "failures": FREQUENT_FAILURE, "failed": FAILURE_DICE},
        "mean_label": MEAN_LABEL,
    }


def _subsets(cases: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one case for each combination of modalities (and model), fewest modalities first."""
    distinct = {(case["model"], case["subset"]): case for case in cases.values()}
    return sorted(distinct.values(), key=lambda one: (one["model"], len(one["available"]), one["subset"]))
