"""Made-up evaluations for unit tests: scores that depend on the subset, the case and the label, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nnunetv2_unimrseg.evaluation.evaluation import COLUMNS, FORMAT, Evaluation
from nnunetv2_unimrseg.modalities import Modalities, all_subsets

FOUR = ("FLAIR", "T1", "T1ce", "T2")
TUMOUR = ("edema", "non_enhancing_tumour", "enhancing_tumour")


def made_up(
    modalities: Sequence[str] = FOUR,
    labels: Sequence[str] = TUMOUR,
    num_cases: int = 5,
    seed: int = 0,
    better: float = 0.0,
    folder: Path | None = None,
    name: str = "UniMRSegStage3Trainer",
) -> Evaluation:
    """Return an evaluation whose Dice rises with the number of modalities; `better` is added to every Dice."""
    rng = np.random.default_rng(seed)
    of_names = Modalities(modalities)
    subsets = {of_names.describe(subset): subset for subset in all_subsets(len(of_names))}
    cases = [f"case_{number:02d}" for number in range(num_cases)]
    rows = []
    for case in cases:
        for subset_name, subset in subsets.items():
            for label in labels:
                dice = np.clip(0.35 + 0.5 * sum(subset) / len(subset) + rng.normal(0, 0.1) + better, 0, 1)
                reference = rng.uniform(5, 40)
                change = rng.normal(0, 4)
                rows.append((case, "0", subset_name, sum(subset), label, dice, 30 * (1 - dice), 8 * (1 - dice),
                             change, reference, reference + change))  # fmt: skip
    settings = {
        "format": FORMAT,
        "name": name,
        "versions": {"nnunetv2-unimrseg": "0.1.0", "nnunetv2": "2.8.1", "torch": "2.14.1", "python": "3.11.7"},
        "model": {
            "dataset": "Dataset900_UniMRSegPhantom", "trainer": name, "plans": "nnUNetUniMRSegPlans",
            "configuration": "3d_fullres", "checkpoint": "checkpoint_final.pth", "folds": ["0"],
            "weights_sha256": {"0": f"{seed:064x}"}, "missing_modalities": "left out before preprocessing",
        },
        "prediction": {"mirroring": True, "step_size": 0.5, "device": "cpu"},
        "conventions": {"empty": "brats", "failure_dice": 0.1},
        "modalities": list(of_names),
        "labels": list(labels),
        "subsets": [
            {"name": key, "available": [modality for modality, there in zip(of_names, subset, strict=True) if there]}
            for key, subset in subsets.items()
        ],
        "source": "validation cases of the folds",
        "cases": [
            {"case": case, "fold": "0", "images": {modality: f"/data/{case}_{number:04d}.nii.gz"
             for number, modality in enumerate(of_names)}, "label": f"/data/labels/{case}.nii.gz"}
            for case in cases
        ],
        "reader": "SimpleITKIO",
        "file_ending": ".nii.gz",
        "failures": [],
    }  # fmt: skip
    return Evaluation(settings, pd.DataFrame(rows, columns=list(COLUMNS)), folder)
