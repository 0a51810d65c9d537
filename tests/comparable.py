"""Made-up evaluations of the same cases, in memory and in folders, for the tests of comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import evaluations
import numpy as np

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.files import write_evaluation


def baseline(**options: object) -> Evaluation:
    """`evaluations.made_up`, with one reference volume a case and label, as real evaluations have."""
    made = evaluations.made_up(**options)
    volumes = made.scores.groupby(["case", "label"])["reference_ml"].transform("first")
    return replace(made, scores=made.scores.assign(reference_ml=volumes))


def another(of: Evaluation, name: str = "other", gain: float = 0.0, noise: float = 0.05, seed: int = 1) -> Evaluation:
    """Return an evaluation of another model on the same cases: Dice differs by `gain` and a normal deviate."""
    dice = of.scores["dice"] + gain + np.random.default_rng(seed).normal(0, noise, len(of.scores))
    dice = dice.clip(0, 1)
    scores = of.scores.assign(dice=dice, hd95_mm=30 * (1 - dice), asd_mm=8 * (1 - dice))
    return replace(of, scores=scores, settings={**of.settings, "name": name})


def changed(of: Evaluation, **settings: object) -> Evaluation:
    """Return an evaluation with other settings."""
    return replace(of, settings={**of.settings, **settings})


def only(of: Evaluation, rows: object) -> Evaluation:
    """Return an evaluation with these rows of the scores only."""
    return replace(of, scores=of.scores[rows].reset_index(drop=True))


def only_subsets(of: Evaluation, *names: str) -> Evaluation:
    """Return an evaluation of these subsets only."""
    listed = [entry for entry in of.settings["subsets"] if entry["name"] in names]
    return changed(only(of, of.scores["subset"].isin(names)), subsets=listed)


def written(of: Evaluation, folder: Path) -> Path:
    """Write an evaluation; return its folder."""
    write_evaluation(of, folder)
    return folder
