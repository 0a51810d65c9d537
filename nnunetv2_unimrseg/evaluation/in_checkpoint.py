"""The evaluations that a checkpoint holds of its own weights: they travel with the weights and end with them.

nnU-Net ignores the key that they lie under when it predicts, exports or continues training; the checkpoints of a
continued training lack it. A checkpoint holds Dice and HD95 of each case, subset and label, in plain Python types, and
one evaluation for each kind and set of folds:

- A *validation* evaluation is about the validation cases of one fold, predicted by that fold alone.
- An *external* evaluation is about cases given by the user, predicted by one or several folds together. The checkpoint
  of each of these folds holds it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import (
    EXTERNAL,
    VALIDATION,
    ConventionsEntry,
    Evaluation,
    PredictionEntry,
    SubsetEntry,
)
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint, weights_sha256
from nnunetv2_unimrseg.utils.files import whole_file
from nnunetv2_unimrseg.utils.hardware import device_option

KEY = "unimrseg_evaluation"
"""The key of the evaluations in a checkpoint."""

FORMAT = 1

_NAMES, _METRICS = ("case", "fold", "subset", "label"), ("dice", "hd95_mm")
_MUST_AGREE = ("modalities", "labels", "conventions", "conditions")


@dataclass(frozen=True)
class StoredEvaluation:
    """What a checkpoint holds of one evaluation, under the names of these attributes.

    Attributes:
        kind: `VALIDATION` or `EXTERNAL`.
        weights_sha256: of every fold that predicted, by fold.
        modalities, labels, subsets, conventions, prediction, versions: as in `evaluation.Settings`.
        scores: columns `case`, `fold`, `subset`, `label`, `dice` (0 to 1), `hd95_mm`; NaN where undefined. The
            checkpoint holds a list for each column.
    """

    kind: str
    weights_sha256: dict[str, str]
    modalities: list[str]
    labels: list[str]
    subsets: list[SubsetEntry]
    conventions: ConventionsEntry
    prediction: PredictionEntry
    versions: dict[str, str]
    scores: pd.DataFrame

    @property
    def folds(self) -> list[str]:
        """The folds that predicted."""
        return list(self.weights_sha256)

    @property
    def conditions(self) -> dict[str, Any]:
        """The settings of the prediction that change its result."""
        return {name: self.prediction.get(name) for name in ("mirroring", "step_size")}

    @property
    def num_cases(self) -> int:
        """How many cases were scored."""
        return len(self.scores[["fold", "case"]].drop_duplicates())

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """The pairs of case and subset that were scored."""
        return set(zip(self.scores["case"], self.scores["subset"], strict=True))

    def subset_name(self, available: Sequence[str]) -> str | None:
        """Return the name of the subset of these modalities; None where it was not evaluated."""
        scored = set(self.scores["subset"])
        names = (entry["name"] for entry in self.subsets if set(entry["available"]) == set(available))
        return next((name for name in names if name in scored), None)


@dataclass(frozen=True)
class FoldEvaluations:
    """The evaluations in the checkpoint of one fold; `note` says why those that it holds cannot be used."""

    fold: str
    weights_sha256: str
    evaluations: tuple[StoredEvaluation, ...] = ()
    note: str = ""


def store_evaluation(checkpoint_path: str | Path, evaluation: Evaluation, fold: str) -> str | None:
    """Store an evaluation in the checkpoint of a fold.

    Only the fold's own cases of a validation evaluation are stored, and all cases of an external one. The evaluation
    replaces a stored one of the same kind and folds, unless the stored one has all of its cases and subsets and more,
    and does not contradict it. Everything else in the file stays as it is; after any error the file is unchanged.

    Returns:
        None when it was stored, otherwise a sentence that says why not.

    Raises:
        UserError: when the checkpoint cannot be read or written, or its weights are not those that were evaluated.
    """
    path = Path(checkpoint_path).resolve()
    new = _select_fold(evaluation, fold)
    if new.scores.empty:
        return f"No case of fold {fold} was scored, so there is nothing to store in {path}."
    before = _file_state(path)
    checkpoint = read_checkpoint(path)
    if weights_sha256(checkpoint["network_weights"]) != new.weights_sha256[fold]:
        raise UserError(
            f"The weights in {path} changed since it was evaluated, so the evaluation was not stored in it. Evaluate "
            f"again: `{evaluate_command(checkpoint, path, new.folds)}`."
        )
    current = [one for one in _decode(checkpoint) if one.weights_sha256.get(fold) == new.weights_sha256[fold]]
    same = next((one for one in current if one.kind == new.kind and set(one.folds) == set(new.folds)), None)
    if same is not None and same.pairs > new.pairs and not _contradict(same, new):
        return (
            f"{path} keeps the {new.kind} evaluation that it holds: that has all {len(new.pairs)} pairs of case and "
            f"subset of this one, and {len(same.pairs) - len(new.pairs)} more."
        )
    kept = [one for one in current if one is not same]
    checkpoint[KEY] = {"format": FORMAT, "evaluations": [_encode(one) for one in (*kept, new)]}
    _write(checkpoint, path, before)
    return None


def _contradict(stored: StoredEvaluation, new: StoredEvaluation) -> bool:
    """Whether both were made alike and yet differ in a score, as after a reference was corrected."""
    if stored.labels != new.labels:
        return True
    if stored.conventions != new.conventions or stored.conditions != new.conditions:
        return False
    both = stored.scores.merge(new.scores, on=["case", "subset", "label"])
    return not all(
        np.allclose(both[f"{metric}_x"].astype(float), both[f"{metric}_y"].astype(float), equal_nan=True)
        for metric in _METRICS
    )


def _select_fold(evaluation: Evaluation, fold: str) -> StoredEvaluation:
    """Return what the checkpoint of a fold is to hold of an evaluation."""
    settings, scores = evaluation.settings, evaluation.scores
    hashes = settings["model"]["weights_sha256"]
    validation = settings["kind"] == VALIDATION
    if validation:
        scores, hashes = scores[scores["fold"].astype(str) == fold], {fold: hashes[fold]}
    return StoredEvaluation(
        kind=settings["kind"],
        weights_sha256=dict(hashes),
        modalities=settings["modalities"],
        labels=settings["labels"],
        subsets=settings["subsets"],
        conventions=settings["conventions"],
        prediction=settings["prediction"],
        versions=settings["versions"],
        scores=scores.assign(fold=fold if validation else "")[[*_NAMES, *_METRICS]],
    )


def _encode(evaluation: StoredEvaluation) -> dict[str, Any]:
    """Return the content of a checkpoint; equal names are one object, so that pickle writes each name once."""
    settings = {name: value for name, value in vars(evaluation).items() if name != "scores"}
    scores = evaluation.scores
    names = {name: [sys.intern(str(value)) for value in scores[name]] for name in _NAMES}
    metrics = {name: scores[name].astype(float).tolist() for name in _METRICS}
    return {**json.loads(json.dumps(settings)), "scores": {**names, **metrics}}


def _decode(checkpoint: Mapping[str, Any]) -> list[StoredEvaluation]:
    stored = checkpoint.get(KEY)
    if not isinstance(stored, Mapping) or stored.get("format") != FORMAT:
        return []
    return [StoredEvaluation(**{**one, "scores": pd.DataFrame(one["scores"])}) for one in stored["evaluations"]]


def _file_state(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None


def _write(checkpoint: Mapping[str, Any], path: Path, before: tuple[int, int] | None) -> None:
    """Replace the checkpoint at `path`, unless the file there is no longer the one that was read."""
    changed = False
    try:
        with whole_file(path, failures=(RuntimeError,)) as temporary:
            with temporary.open("wb") as file:  # opened here, so that the reason is the file system's own
                torch.save(checkpoint, file)
            changed = _file_state(path) != before
            if changed:
                raise UserError(
                    f"{path} was changed by another process meanwhile; the evaluation was not stored in it."
                )
    except UserError as error:
        if changed:
            raise
        needed = path.stat().st_size / 2**20
        raise UserError(
            f"The evaluation was not stored in its checkpoint. {error} The new file is written beside the old one, so "
            f"{path.parent} must be writable and have {needed:.0f} MB free."
        ) from error


def read_stored_evaluations(checkpoint: Mapping[str, Any], path: Path) -> FoldEvaluations:
    """Return the evaluations stored in a checkpoint.

    Args:
        checkpoint: as `read_checkpoint` returns it.
        path: where it lies, FOLDER/fold_X/NAME.

    Raises:
        UserError: when the weights are not those that were evaluated.
    """
    fold, digest = path.parent.name.removeprefix("fold_"), weights_sha256(checkpoint["network_weights"])
    evaluations = _decode(checkpoint)
    if KEY in checkpoint and not evaluations:
        note = f"{path} holds an evaluation that another version of nnunetv2-unimrseg wrote; this one cannot read it"
        return FoldEvaluations(fold, digest, note=note)
    if any(digest not in one.weights_sha256.values() for one in evaluations):
        raise UserError(
            f"The weights in {path} changed since the evaluation was stored in it: evaluate again with "
            f"`{evaluate_command(checkpoint, path, [fold])}`. `unimrseg predict --no_report` segments without looking "
            "at it."
        )
    own = tuple(one for one in evaluations if one.weights_sha256.get(fold) == digest)
    copied = bool(evaluations) and not own
    note = f"{path} was copied from another fold, whose evaluation it holds" if copied else ""
    return FoldEvaluations(fold, digest, own, note)


def evaluate_command(checkpoint: Mapping[str, Any], path: Path, folds: Sequence[str]) -> str:
    """Return the command that evaluates a model, given one of its checkpoints."""
    init_args = checkpoint.get("init_args", {})
    plans = init_args.get("plans", {})
    words = [
        "unimrseg evaluate",
        f"-d {plans.get('dataset_name', 'DATASET')}",
        f"-c {init_args.get('configuration', 'CONFIGURATION')}",
        f"-f {' '.join(folds)}",
        f"-tr {checkpoint.get('trainer_name', 'TRAINER')}",
        f"-p {plans.get('plans_name', 'PLANS')}",
    ]
    if path.name != "checkpoint_final.pth":
        words.append(f"-chk {path.name}")
    return " ".join(words) + device_option()


def combine_folds(folds: Sequence[FoldEvaluations]) -> tuple[StoredEvaluation | None, str]:
    """Make one evaluation of a model from those that its folds hold.

    The validation evaluations of all folds together make one. An external evaluation counts if exactly these folds,
    with the weights that they have now, made its predictions. Of both kinds, the one with more pairs of case and
    subset is returned.

    Returns:
        The evaluation, or None; and the reason why there is none ("" where there is one).
    """
    weights = {one.fold: one.weights_sha256 for one in folds}
    candidates = [
        one for of_fold in folds for one in of_fold.evaluations
        if one.kind == EXTERNAL and one.weights_sha256 == weights
    ]  # fmt: skip
    by_fold = [next((one for one in fold.evaluations if one.kind == VALIDATION), None) for fold in folds]
    reason = _why_not_concatenate(folds, by_fold)
    if not reason:
        candidates.append(_concatenate([one for one in by_fold if one is not None]))
    if candidates:
        return max(candidates, key=lambda one: len(one.scores[["fold", "case", "subset"]].drop_duplicates())), ""
    return None, reason


def _why_not_concatenate(folds: Sequence[FoldEvaluations], by_fold: Sequence[StoredEvaluation | None]) -> str:
    notes = [fold.note for fold in folds if fold.note]
    without = [fold.fold for fold, found in zip(folds, by_fold, strict=True) if found is None]
    if notes:
        return "; ".join(notes)
    if len(without) == len(folds):
        other = sorted({" ".join(one.folds) for fold in folds for one in fold.evaluations})
        there = f" (only of other folds together: {', '.join(other)})" if other else ""
        return f"no evaluation of this model is stored in its checkpoint{'s' if len(folds) > 1 else ''}{there}"
    if without:
        return f"fold {', '.join(without)} of this model has not been evaluated, the other folds have"
    for name in _MUST_AGREE:
        if any(getattr(one, name) != getattr(by_fold[0], name) for one in by_fold):
            return f"the folds of this model were evaluated with different {name}"
    return ""


def _concatenate(evaluations: Sequence[StoredEvaluation]) -> StoredEvaluation:
    first = evaluations[0]
    subsets = {entry["name"]: entry for one in evaluations for entry in one.subsets}
    return replace(
        first,
        weights_sha256={fold: digest for one in evaluations for fold, digest in one.weights_sha256.items()},
        subsets=list(subsets.values()),
        scores=pd.concat([one.scores for one in evaluations], ignore_index=True),
    )
