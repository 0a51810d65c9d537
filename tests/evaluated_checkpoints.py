"""Real checkpoints, and evaluations of what is in them, for tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import evaluations
import numpy as np
import pandas as pd
import torch
from test_trainer_steps import batch, folders  # noqa: F401

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.in_checkpoint import (
    FoldEvaluations,
    read_stored_evaluations,
    store_evaluation,
    weights_sha256,
)
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv3d(4, 2, 3), torch.nn.BatchNorm3d(2))


def write(path: Path, seed: int = 0) -> Path:
    module = network(seed)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(2, 4, 4, 4, 4)).sum().backward()
    optimizer.step()
    plans = {"dataset_name": "Dataset998_Tiny", "plans_name": "nnUNetPlans"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "network_weights": module.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)]},
            "_best_ema": np.float64(0.25),
            "current_epoch": 3,
            "init_args": {"configuration": "3d_fullres", "plans": plans},
            "trainer_name": "UniMRSegStage3Trainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        path,
    )
    return path


def evaluated(*paths: Path, kind: str = "validation", **keywords) -> Evaluation:
    """Return a made-up evaluation of these checkpoints; its cases are spread over the folds."""
    evaluation = evaluations.made_up(**keywords)
    hashes = {
        path.parent.name.removeprefix("fold_"): weights_sha256(read_checkpoint(path)["network_weights"])
        for path in paths
    }
    evaluation.settings["kind"] = kind
    evaluation.settings["model"] |= {"folds": list(hashes), "weights_sha256": hashes}
    numbers = evaluation.scores["case"].str.extract(r"(\d+)", expand=False).astype(int)
    folds = list(hashes)
    scores = evaluation.scores.assign(fold=[folds[number % len(folds)] for number in numbers])
    return dataclasses.replace(evaluation, scores=scores)


def stored(path: Path) -> FoldEvaluations:
    return read_stored_evaluations(read_checkpoint(path), path)


def only(evaluation: Evaluation, rows: pd.Series) -> Evaluation:
    return dataclasses.replace(evaluation, scores=evaluation.scores[rows])


def equal(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


# --- the hash -----------------------------------------------------------------------------------------------------


def folds_with(tmp_path, *kinds: str, num_cases: int = 6, **changed) -> list[FoldEvaluations]:
    """Return what two folds hold that were evaluated in these ways."""
    paths = [write(tmp_path / f"fold_{fold}" / "checkpoint_final.pth", seed=fold) for fold in (0, 1)]
    for kind in kinds:
        evaluation = evaluated(*paths, kind=kind, num_cases=num_cases)
        for fold, path in enumerate(paths):
            store_evaluation(path, evaluation, str(fold))
    return [stored(path) for path in paths]


def changed(fold: FoldEvaluations, **values) -> FoldEvaluations:
    return dataclasses.replace(fold, evaluations=(dataclasses.replace(fold.evaluations[0], **values),))


def weights_sha256_of_seed(seed: int) -> str:
    module = network(seed)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(2, 4, 4, 4, 4)).sum().backward()
    optimizer.step()
    return weights_sha256(module.state_dict())
