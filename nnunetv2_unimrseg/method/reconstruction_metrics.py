"""How well a modality is reconstructed: L1, PSNR and SSIM by missing pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_unimrseg.method.losses import ssim
from nnunetv2_unimrseg.modalities import Modalities, Subset, incomplete_subsets, leave_one_out

METRICS = ("L1", "PSNR", "SSIM")
UNIT = "L1 in normalised intensity, PSNR in dB, SSIM from -1 to 1"

MOST_PATTERNS = 14
"""Where there are more incomplete subsets than this, only those that lack one modality are scored."""


def missing_patterns(num_modalities: int) -> list[Subset]:
    """Return the subsets of available modalities for which reconstruction is scored."""
    if 2**num_modalities - 2 <= MOST_PATTERNS:
        return incomplete_subsets(num_modalities)
    return leave_one_out(num_modalities)


def reconstruction_scores(reconstruction: Tensor, target: Tensor, window: int) -> list[dict[str, float]]:
    """Score a reconstruction `(M, X, Y[, Z])` channel by channel.

    Returns:
        For each channel `L1` (mean absolute error, normalised intensity units), `PSNR` (dB, of the target's range;
        infinite at equality) and `SSIM` (-1 to 1). A channel without target (NaN) has NaN.
    """
    reconstruction, target = reconstruction.float(), target.float()
    absolute = (reconstruction - target).abs().flatten(1).mean(1)
    squared = (reconstruction - target).square().flatten(1).mean(1)
    spread = target.flatten(1).amax(1) - target.flatten(1).amin(1)
    psnr = 10 * torch.log10(spread.square() / squared)
    similarity = ssim(reconstruction[None], target[None], window)[0]
    columns = zip(absolute.tolist(), psnr.tolist(), similarity.tolist(), strict=True)
    return [dict(zip(METRICS, values, strict=True)) for values in columns]


def summarise(cases: Sequence[dict[str, Any]], modalities: Modalities) -> dict[str, Any]:
    """Average the scores over the cases, for each pattern and modality and over all missing modalities together.

    Args:
        cases: dictionaries with `case` and `metrics`, the scores by pattern, modality and metric; what a case cannot
            be scored for is not in it.
        modalities: the dataset's.
    """
    mean: dict[str, dict[str, dict[str, float]]] = {}
    of_missing = []
    for subset in missing_patterns(len(modalities)):
        pattern = modalities.describe(subset)
        for name, available in zip(modalities.channel_names, modalities.expand(subset), strict=True):
            entries = [case["metrics"][pattern][name] for case in cases if name in case["metrics"].get(pattern, {})]
            if not entries:
                continue
            scores = {metric: float(np.nanmean([entry[metric] for entry in entries])) for metric in METRICS}
            mean.setdefault(pattern, {})[name] = scores
            if not available:
                of_missing.append(scores)
    overall = {metric: float(np.mean([entry[metric] for entry in of_missing])) for metric in METRICS if of_missing}
    return {
        "unit": UNIT,
        "patterns": "available modalities, joined by +",
        "missing_modalities_mean": overall,
        "mean": mean,
        "metric_per_case": list(cases),
    }
