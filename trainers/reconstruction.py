"""How well stage 1 reconstructs: figures per modality and missing pattern, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from nnunetv2_unimrseg.losses import ssim
from nnunetv2_unimrseg.modalities import Modalities, Subset, incomplete_subsets, leave_one_out

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
    return [{"L1": one, "PSNR": two, "SSIM": three} for one, two, three in columns]


def summarise(cases: Sequence[dict], modalities: Modalities) -> dict:
    """Average per-case scores: pattern -> modality -> figure, and over all missing modalities together.

    Args:
        cases: dictionaries with `case` and `metrics` (pattern -> modality -> figure).
        modalities: the dataset's.
    """
    patterns = list(cases[0]["metrics"])
    mean = {
        pattern: {
            name: {
                figure: float(np.nanmean([case["metrics"][pattern][name][figure] for case in cases]))
                for figure in ("L1", "PSNR", "SSIM")
            }
            for name in modalities
        }
        for pattern in patterns
    }
    available_in = {modalities.describe(subset): subset for subset in missing_patterns(len(modalities))}
    of_missing = [
        mean[pattern][name]
        for pattern in patterns
        for name, available in zip(modalities, available_in[pattern], strict=True)
        if not available
    ]
    overall = {figure: float(np.mean([entry[figure] for entry in of_missing])) for figure in ("L1", "PSNR", "SSIM")}
    return {
        "unit": "L1 in normalised intensity, PSNR in dB, SSIM from -1 to 1",
        "patterns": "available modalities, joined by +",
        "missing_modalities_mean": overall,
        "mean": mean,
        "metric_per_case": list(cases),
    }


def write_reconstruction_figure(
    path: Path, shown_input: Tensor, reconstruction: Tensor, target: Tensor, modalities: Modalities, title: str
) -> None:
    """Write a PNG of one patch: a row each for input, reconstruction and target, a column for each modality.

    Args:
        path: the file.
        shown_input, reconstruction, target: `(M, X, Y[, Z])`, normalised intensities; 3D shows the middle slice.
        modalities: names of the columns.
        title: above the figure.
    """
    rows = {"input": shown_input, "reconstruction": reconstruction, "target": target}
    figure, axes = plt.subplots(
        3, len(modalities), figsize=(2.2 * len(modalities) + 0.8, 7.2), layout="constrained", squeeze=False
    )
    for column, name in enumerate(modalities):
        shown = _slice(target[column])
        low, high = np.percentile(shown, (1, 99))
        for row, (label, images) in enumerate(rows.items()):
            axis = axes[row, column]
            axis.imshow(_slice(images[column]), cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(name)
    figure.suptitle(title)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _slice(image: Tensor) -> np.ndarray:
    image = image.detach().float().cpu()
    return (image[image.shape[0] // 2] if image.ndim == 3 else image).numpy()
