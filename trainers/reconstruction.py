"""The picture that stage 1's trainer writes of a reconstructed patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from nnunetv2_unimrseg.utils.files import whole_file


def write_reconstruction_figure(
    path: Path, shown_input: Tensor, reconstruction: Tensor, target: Tensor, names: Sequence[str], title: str
) -> None:
    """Write a PNG of one patch: a row each for input, reconstruction and target, a column for each channel.

    Args:
        path: the file.
        shown_input, reconstruction, target: `(C, X, Y[, Z])`, normalised intensities; 3D shows the middle slice.
        names: of the channels.
        title: above the figure.
    """
    rows = {"input": shown_input, "reconstruction": reconstruction, "target": target}
    figure, axes = plt.subplots(
        3, len(names), figsize=(2.2 * len(names) + 0.8, 7.2), layout="constrained", squeeze=False
    )
    for column, name in enumerate(names):
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
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=90)
    plt.close(figure)


def _slice(image: Tensor) -> np.ndarray:
    image = image.detach().float().cpu()
    return (image[image.shape[0] // 2] if image.ndim == 3 else image).numpy()
