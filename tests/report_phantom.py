"""An evaluation of the phantom for tests of the reports: real images, made-up predictions that get worse with less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK
from evaluations import made_up
from scipy import ndimage

from nnunetv2_unimrseg.data.phantom import LABELS, MODALITIES, write_phantom_dataset
from nnunetv2_unimrseg.evaluation.evaluation import COLUMNS, Evaluation

NAMES = tuple(name for name in LABELS if name != "background")


def phantom_evaluation(
    folder: Path, num_cases: int = 5, shape: Sequence[int] = (36, 45, 30), spacing: Sequence[float] = (3.0, 3.0, 3.0)
) -> Evaluation:
    """Write the phantom and predictions below `folder`, and return the evaluation with their true Dice."""
    dataset = folder / "Dataset900_Phantom"
    write_phantom_dataset(dataset, num_training=num_cases, num_unseen=0, shape=shape, spacing=spacing, seed=1)
    cases = [f"phantom_{number:03d}" for number in range(num_cases)]
    template = made_up(MODALITIES, NAMES, num_cases=1)
    entries = [
        {
            "case": case,
            "fold": "0",
            "images": {
                name: str(dataset / "imagesTr" / f"{case}_{number:04d}.nii.gz")
                for number, name in enumerate(MODALITIES)
            },
            "label": str(dataset / "labelsTr" / f"{case}.nii.gz"),
        }
        for case in cases
    ]
    settings = {**template.settings, "cases": entries, "label_values": {name: LABELS[name] for name in NAMES}}
    evaluation = Evaluation(settings, pd.DataFrame(columns=list(COLUMNS)), folder / "evaluation")
    rng = np.random.default_rng(0)
    rows = []
    for entry in entries:
        image = SimpleITK.ReadImage(entry["label"])
        reference = SimpleITK.GetArrayFromImage(image)
        for name, subset in evaluation.subsets.items():
            prediction = _perturbed(reference, 0.6 * (len(subset) - sum(subset)) + 0.4, rng)
            _write_like(prediction, image, evaluation.prediction_path(entry["case"], name))
            rows += _rows(entry["case"], name, sum(subset), reference, prediction, spacing)
    return Evaluation(settings, pd.DataFrame(rows, columns=list(COLUMNS)), evaluation.folder)


def _perturbed(reference: np.ndarray, voxels: float, rng: np.random.Generator) -> np.ndarray:
    shifted = ndimage.shift(reference, rng.normal(0, voxels, 3), order=0, mode="nearest")
    return ndimage.median_filter(shifted, 3).astype(np.uint8)


def _write_like(prediction: np.ndarray, image: SimpleITK.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = SimpleITK.GetImageFromArray(prediction)
    written.CopyInformation(image)
    SimpleITK.WriteImage(written, str(path))


def _rows(
    case: str, subset: str, number: int, reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> list[tuple]:
    millilitres = float(np.prod(spacing)) / 1000
    rows = []
    for label in NAMES:
        a, b = reference == LABELS[label], prediction == LABELS[label]
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        volumes = a.sum() * millilitres, b.sum() * millilitres
        distances = 25 * (1 - dice), 8 * (1 - dice)
        rows.append((case, "0", subset, number, label, dice, *distances, volumes[1] - volumes[0], *volumes))
    return rows
