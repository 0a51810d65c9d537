"""Evaluations stored in the checkpoints that they are about, so that they travel with them and cannot outlive them.

A checkpoint holds them under a key of their own, which nnU-Net ignores when it predicts, exports or continues training;
what continued training writes is without it. Stored are, for each case, subset and label, Dice and HD95, in plain
Python types; one evaluation for each kind and set of folds.

- A *validation* evaluation is about the validation cases of one fold, predicted by that fold alone.
- An *external* one is about cases given by the user, predicted by one or several folds together; each of these folds'
  checkpoints holds it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint, weights_sha256
from nnunetv2_unimrseg.utils.files import whole_file
from nnunetv2_unimrseg.utils.hardware import device_option

KEY = "unimrseg_evaluation"
"""Of the checkpoint's dictionary."""

FORMAT = 1
VALIDATION, EXTERNAL = "validation", "external"

_NAMES, _FIGURES = ("case", "fold", "subset", "label"), ("dice", "hd95_mm")
_SETTINGS = ("modalities", "labels", "subsets", "conventions", "prediction", "versions")
_MUST_AGREE = ("modalities", "labels", "conventions", "conditions")


@dataclass(frozen=True)
class StoredEvaluation:
    """What a checkpoint holds of one evaluation; attributes as in `Evaluation.settings` where named alike.

    Attributes:
        kind: `VALIDATION` or `EXTERNAL`.
        weights_sha256: of every fold that predicted, by fold.
        scores: columns `case`, `fold`, `subset`, `label`, `dice` (0 to 1), `hd95_mm`; NaN where undefined.
    """

    kind: str
    weights_sha256: dict[str, str]
    modalities: list[str]
    labels: list[str]
    subsets: list[dict[str, Any]]
    conventions: dict[str, Any]
    prediction: dict[str, Any]
    versions: dict[str, str]
    scores: pd.DataFrame

    @property
    def folds(self) -> list[str]:
        """The folds that predicted."""
        return list(self.weights_sha256)

    @property
    def conditions(self) -> dict[str, Any]:
        """How was predicted, where that changes the result."""
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
    """What the checkpoint of one fold holds; `note` says what of it cannot be used."""

    fold: str
    weights_sha256: str
    evaluations: tuple[StoredEvaluation, ...] = ()
    note: str = ""


def store_evaluation(checkpoint_path: str | Path, evaluation: Evaluation, fold: str) -> str | None:
    """Store an evaluation in the checkpoint of a fold.

    Of a validation evaluation, the fold's own cases are stored; of an external one, all. It takes the place of one of
    the same kind and folds, unless that has all its cases and subsets and more, and does not contradict it. All else
    in the file stays as it is, and whatever fails, the file does.

    Returns:
        None when it was stored; otherwise a sentence that says why not.

    Raises:
        UserError: when the checkpoint cannot be read or written, or its weights are not those that were evaluated.
    """
    path = Path(checkpoint_path).resolve()
    new = _of_fold(evaluation, fold)
    if new.scores.empty:
        return f"No case of fold {fold} was scored, so there is nothing to store in {path}."
    before = _state(path)
    checkpoint = read_checkpoint(path)
    if weights_sha256(checkpoint["network_weights"]) != new.weights_sha256[fold]:
        raise UserError(
            f"The weights in {path} changed since it was evaluated, so the evaluation was not stored in it. Evaluate "
            f"again: `{evaluate_command(checkpoint, path, new.folds)}`."
        )
    current = [one for one in _readable(checkpoint) if one.weights_sha256.get(fold) == new.weights_sha256[fold]]
    same = next((one for one in current if one.kind == new.kind and set(one.folds) == set(new.folds)), None)
    if same is not None and same.pairs > new.pairs and not _contradict(same, new):
        return (
            f"{path} keeps the {new.kind} evaluation that it holds: that has all {len(new.pairs)} pairs of case and "
            f"subset of this one, and {len(same.pairs) - len(new.pairs)} more."
        )
    kept = [one for one in current if one is not same]
    checkpoint[KEY] = {"format": FORMAT, "evaluations": [_plain(one) for one in (*kept, new)]}
    _write(checkpoint, path, before)
    return None


def _contradict(stored: StoredEvaluation, new: StoredEvaluation) -> bool:
    """Whether both were made alike and yet say otherwise of a case and subset: its reference was corrected since."""
    if stored.labels != new.labels:
        return True
    if stored.conventions != new.conventions or stored.conditions != new.conditions:
        return False
    both = stored.scores.merge(new.scores, on=["case", "subset", "label"])
    return not all(
        np.allclose(both[f"{figure}_x"].astype(float), both[f"{figure}_y"].astype(float), equal_nan=True)
        for figure in _FIGURES
    )


def _of_fold(evaluation: Evaluation, fold: str) -> StoredEvaluation:
    settings, scores = evaluation.settings, evaluation.scores
    hashes = settings["model"]["weights_sha256"]
    if settings["kind"] == VALIDATION:
        scores, hashes = scores[scores["fold"].astype(str) == fold], {fold: hashes[fold]}
    scores = scores.assign(fold=fold if settings["kind"] == VALIDATION else "")[[*_NAMES, *_FIGURES]]
    return StoredEvaluation(settings["kind"], dict(hashes), *(settings[name] for name in _SETTINGS), scores=scores)


def _plain(evaluation: StoredEvaluation) -> dict[str, Any]:
    """Return it in plain Python types, each name once in memory so that pickle writes it once."""
    settings = {name: getattr(evaluation, name) for name in ("kind", "weights_sha256", *_SETTINGS)}
    scores = evaluation.scores
    names = {name: [sys.intern(str(value)) for value in scores[name]] for name in _NAMES}
    figures = {name: scores[name].astype(float).tolist() for name in _FIGURES}
    return {**json.loads(json.dumps(settings)), "scores": {**names, **figures}}


def _readable(checkpoint: Mapping[str, Any]) -> list[StoredEvaluation]:
    stored = checkpoint.get(KEY)
    if not isinstance(stored, Mapping) or stored.get("format") != FORMAT:
        return []
    return [StoredEvaluation(**{**one, "scores": pd.DataFrame(one["scores"])}) for one in stored["evaluations"]]


def _state(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None


def _write(checkpoint: Mapping[str, Any], path: Path, before: tuple[int, int] | None) -> None:
    """Write a checkpoint beside the one that was read from `path`, then put it in its place."""
    changed = False
    try:
        with whole_file(path, failures=(RuntimeError,)) as temporary:
            with temporary.open("wb") as file:  # opened here, so that the reason is the file system's own
                torch.save(checkpoint, file)
            changed = _state(path) != before
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
    evaluations = _readable(checkpoint)
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


def pooled(folds: Sequence[FoldEvaluations]) -> tuple[StoredEvaluation | None, str]:
    """Make one evaluation of what the folds of a model hold.

    The validation evaluations of all folds together are one; an external one counts if exactly these folds, with the
    weights that they have now, predicted. Where there are both, the one with more pairs of case and subset is taken.

    Returns:
        The evaluation, or None; and why there is none, in words ("" where there is one).
    """
    weights = {one.fold: one.weights_sha256 for one in folds}
    candidates = [
        one for of_fold in folds for one in of_fold.evaluations
        if one.kind == EXTERNAL and one.weights_sha256 == weights
    ]  # fmt: skip
    by_fold = [next((one for one in fold.evaluations if one.kind == VALIDATION), None) for fold in folds]
    reason = _why_not_together(folds, by_fold)
    if not reason:
        candidates.append(_together([one for one in by_fold if one is not None]))
    if candidates:
        return max(candidates, key=lambda one: len(one.scores[["fold", "case", "subset"]].drop_duplicates())), ""
    return None, reason


def _why_not_together(folds: Sequence[FoldEvaluations], by_fold: Sequence[StoredEvaluation | None]) -> str:
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


def _together(evaluations: Sequence[StoredEvaluation]) -> StoredEvaluation:
    first = evaluations[0]
    subsets = {entry["name"]: entry for one in evaluations for entry in one.subsets}
    return StoredEvaluation(
        kind=first.kind,
        weights_sha256={fold: digest for one in evaluations for fold, digest in one.weights_sha256.items()},
        modalities=first.modalities,
        labels=first.labels,
        subsets=list(subsets.values()),
        conventions=first.conventions,
        prediction=first.prediction,
        versions=first.versions,
        scores=pd.concat([one.scores for one in evaluations], ignore_index=True),
    )
