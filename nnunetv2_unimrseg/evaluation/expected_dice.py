"""What Dice to expect of a trained model for a subset of the modalities: statistics of its stored evaluations.

A subset is called *weak* for a label where one of three things holds: the mean Dice is at least `LARGE_DROP` lower than
the complete input's on the same cases, it is below `LOW_DICE`, or at least the share `FREQUENT_FAILURE` of the cases
failed (Dice below `FAILURE_DICE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.conventions import FAILURE_DICE
from nnunetv2_unimrseg.evaluation.in_checkpoint import (
    StoredEvaluation,
    combine_folds,
    evaluate_command,
    read_stored_evaluations,
)
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.trained_model import Fold, segmentation_checkpoints

LARGE_DROP = 0.10
LOW_DICE = 0.50
FREQUENT_FAILURE = 0.10

FEW_CASES = 5
"""Statistics of fewer cases say little."""

RESAMPLES = 2000
SEED = 0

_TOLERANCE = 1e-9
"""A drop of `LARGE_DROP` counts as large in spite of rounding errors."""

COLUMNS = (
    "subset", "label", "n", "dice", "dice_low", "dice_high", "dice_p05", "dice_p95", "failure_rate",
    "below_complete", "weak_because", "few_cases",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluatedModel:
    """A trained model and what is known of it.

    Attributes:
        description: `dataset`, `trainer`, `plans`, `configuration`, `checkpoint`, `folds` and `weights_sha256` by fold.
        modalities: the modalities that it was trained with.
        evaluation: of these folds together; None where none is stored.
        why_none: the reason why there is none; "" where there is one.
        evaluate_with: the command that makes one.
    """

    description: dict[str, Any]
    modalities: Modalities
    evaluation: StoredEvaluation | None
    why_none: str
    evaluate_with: str


def describe_evaluated_model(checkpoints: Iterable[tuple[Path, Mapping[str, Any]]]) -> EvaluatedModel:
    """Describe a trained model and the evaluations that its checkpoints hold.

    Args:
        checkpoints: what `segmentation_checkpoints` yields: path and content of one checkpoint a fold.

    Raises:
        UserError: when one or the model's dataset.json cannot be used, or its weights changed since the evaluation in
            it was stored.
    """
    stored = {}
    for path, checkpoint in checkpoints:
        stored[path] = read_stored_evaluations(checkpoint, path)
    folds = list(stored.values())
    evaluation, why_none = combine_folds(folds)
    modalities = Modalities.from_dataset_json(read_dataset_json(path.parent.parent / "dataset.json"))
    if evaluation is not None and tuple(evaluation.modalities) != modalities.names:
        why_none = (
            f"the stored evaluation is of the modalities {', '.join(evaluation.modalities)}, but dataset.json beside "
            f"the model names {', '.join(modalities)}"
        )
        evaluation = None
    init_args = checkpoint.get("init_args", {})
    plans = init_args.get("plans", {})
    description = {
        "dataset": plans.get("dataset_name"),
        "trainer": checkpoint.get("trainer_name"),
        "plans": plans.get("plans_name"),
        "configuration": init_args.get("configuration"),
        "checkpoint": path.name,
        "folds": [one.fold for one in folds],
        "weights_sha256": {one.fold: one.weights_sha256 for one in folds},
    }
    command = evaluate_command(checkpoint, path, description["folds"])
    return EvaluatedModel(description, modalities, evaluation, why_none, command)


def expected_dice(
    model_folder: str | Path,
    folds: Sequence[Fold] | Fold | None = None,
    subset: Sequence[str | int] | None = None,
    *,
    checkpoint_name: str = "checkpoint_final.pth",
) -> pd.DataFrame:
    """Say what Dice to expect of a trained model, from the evaluations stored in its checkpoints.

    Args:
        model_folder: the folder that holds `fold_X`.
        folds: the folds that predict together; None for all that are trained.
        subset: the available modalities, by name or channel number; None for every subset that was evaluated.
        checkpoint_name: the file to read from each fold.

    Returns:
        What `expected_of_subset` returns, for each subset.

    Raises:
        UserError: when no evaluation is stored (says how to make one), it lacks the subset, or it is outdated.
    """
    folds = [folds] if isinstance(folds, str | int) else folds
    model = describe_evaluated_model(
        segmentation_checkpoints(Path(model_folder), folds, checkpoint_name, any_trainer=True)
    )
    if model.evaluation is None:
        raise UserError(f"What to expect is not known: {model.why_none}. Evaluate it: `{model.evaluate_with}`.")
    subsets = [entry["available"] for entry in model.evaluation.subsets]
    evaluated = [names for names in subsets if model.evaluation.subset_name(names) is not None]
    if subset is not None:
        available = model.modalities.subset(subset)
        evaluated = [[name for name, there in zip(model.modalities, available, strict=True) if there]]
        if model.evaluation.subset_name(evaluated[0]) is None:
            known = ", ".join(dict.fromkeys(model.evaluation.scores["subset"]))
            raise UserError(
                f"The subset {model.modalities.describe(available)} was not evaluated; these were: {known}. "
                f"Evaluate it: `{model.evaluate_with}`."
            )
    return pd.concat([expected_of_subset(model.evaluation, names) for names in evaluated], ignore_index=True)


def expected_of_subset(evaluation: StoredEvaluation, available: Sequence[str]) -> pd.DataFrame:
    """Return what Dice to expect for the subset of the modalities named; no row where it was not evaluated.

    Returns:
        A row a label, and `MEAN_LABEL` (the mean of the labels) where there are several. Columns `COLUMNS`: `n` (cases
        with a defined Dice), mean `dice`, the 95 % percentile-bootstrap interval of that mean over cases (`dice_low`,
        `dice_high`), the range that holds the middle 90 % of the cases (`dice_p05`, `dice_p95`), `failure_rate`,
        `below_complete` (by how much the mean is lower than the complete input's, same cases; NaN where that was not
        evaluated), `weak_because` (words; "" where not weak) and `few_cases` (n below `FEW_CASES`). Dice from 0 to 1.
    """
    name = evaluation.subset_name(available)
    if name is None:
        return pd.DataFrame(columns=list(COLUMNS))
    dice = _by_case(evaluation, name)
    low, high = _interval(dice)
    by_case = _with_mean(dice, axis=1)
    table = pd.DataFrame(
        {
            "n": dice.count(),
            "dice": dice.mean(),
            "failure_rate": (dice < FAILURE_DICE).where(dice.notna()).astype(float).mean(),
            "below_complete": _below_complete(evaluation, dice, name),
        }
    )
    table = _with_mean(table, axis=0)
    table["n"] = [*dice.count(), dice.count().max()][: len(table)]
    table["dice_low"], table["dice_high"] = low, high
    table["dice_p05"], table["dice_p95"] = by_case.quantile(0.05), by_case.quantile(0.95)
    table["weak_because"] = [
        "; ".join(f"{reason}: {value}" for reason, value in weaknesses(row).items()) for row in table.to_dict("records")
    ]
    table["few_cases"] = table["n"] < FEW_CASES
    return table.rename_axis("label").reset_index().assign(subset=name)[list(COLUMNS)]


def _by_case(evaluation: StoredEvaluation, subset: str) -> pd.DataFrame:
    """Return the Dice of each case (row) and label (column) with a subset."""
    rows = evaluation.scores[evaluation.scores["subset"] == subset]
    return rows.pivot(index=["fold", "case"], columns="label", values="dice").reindex(columns=evaluation.labels)


def _with_mean(table: pd.DataFrame, axis: int) -> pd.DataFrame:
    """Append the mean over the labels, which are the table's rows (axis 0) or columns (1), where there are several."""
    if table.shape[axis] < 2:
        return table
    mean = table.mean(axis=axis).rename(MEAN_LABEL)
    return pd.concat([table, mean.to_frame().T if axis == 0 else mean], axis=axis)


def _interval(dice: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the 95 % percentile-bootstrap interval of each label's mean, and of the mean of these means."""
    n, values = len(dice), dice.to_numpy(float)
    times_drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    with np.errstate(invalid="ignore"):
        means = times_drawn @ np.nan_to_num(values) / (times_drawn @ np.isfinite(values))
    resampled = _with_mean(pd.DataFrame(means, columns=dice.columns), axis=1)
    return resampled.quantile(0.025), resampled.quantile(0.975)


def _below_complete(evaluation: StoredEvaluation, dice: pd.DataFrame, name: str) -> pd.Series:
    complete = evaluation.subset_name(evaluation.modalities)
    if complete is None or complete == name:
        return pd.Series(np.nan, index=dice.columns)
    return (_by_case(evaluation, complete) - dice).mean()


def weaknesses(row: Mapping[str, Any]) -> dict[str, str]:
    """Return each reason why a subset is weak for a label, with its value and unit, from a row of statistics."""
    found = {}
    if row["dice"] < LOW_DICE:
        found[f"Dice below {100 * LOW_DICE:.0f} % on average"] = f"{100 * row['dice']:.1f} %"
    if row["below_complete"] >= LARGE_DROP - _TOLERANCE:
        reason = f"Dice {100 * LARGE_DROP:.0f} points or more lower than with all modalities"
        found[reason] = f"{100 * row['below_complete']:.1f} points"
    if row["failure_rate"] >= FREQUENT_FAILURE - _TOLERANCE:
        reason = f"{100 * FREQUENT_FAILURE:.0f} % or more of the cases failed (Dice below {100 * FAILURE_DICE:.0f} %)"
        found[reason] = f"{100 * row['failure_rate']:.1f} %"
    return found
