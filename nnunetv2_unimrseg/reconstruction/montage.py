"""The picture of a case: its images, the reconstructions, and the difference to the truth where it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_unimrseg.utils.files import whole_file

SYNTHETIC, REAL, DIFFERENCE = "synthetic", "real", "|difference|"
SYNTHETIC_COLOUR = "#c2410c"


@dataclass(frozen=True)
class Column:
    """What the picture shows of one modality; slices (Y, X).

    Attributes:
        real: the case's own image, or None where it is missing.
        note: below `real`.
        synthetic: the reconstruction, in the units of `real` where both are there, or None.
        caption: below the reconstruction.
    """

    real: np.ndarray | None = None
    note: str = ""
    synthetic: np.ndarray | None = None
    caption: str = ""


def middle_of_content(mask: np.ndarray) -> int:
    """Return the slice of a mask (Z, Y, X) midway between the first and the last that are not empty."""
    filled = np.flatnonzero(mask.any((1, 2)))
    return int((filled[0] + filled[-1]) // 2) if len(filled) else len(mask) // 2


def write_montage(path: Path, columns: Mapping[str, Column], title: str, spacing: Sequence[float]) -> None:
    """Write a PNG whole or not at all: a column for each modality; rows for real, synthetic and difference.

    Args:
        path: the file; an existing one is replaced.
        columns: by name of the modality.
        title: above the picture.
        spacing: of a slice's rows and columns; any unit.
    """
    compared = any(column.synthetic is not None and column.real is not None for column in columns.values())
    rows = [REAL, SYNTHETIC, DIFFERENCE] if compared else [REAL, SYNTHETIC]
    images = [image for column in columns.values() for image in (column.real, column.synthetic) if image is not None]
    shape = images[0].shape
    aspect = float(spacing[0] / spacing[1])
    height = np.clip(2.2 * aspect * shape[0] / shape[1], 1.0, 5.0)
    size = 2.2 * len(columns) + 0.5, (height + 0.45) * len(rows) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for number, (name, column) in enumerate(columns.items()):
        _draw_column(axes[:, number], name, column, shape, aspect)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row, fontsize=11, color=SYNTHETIC_COLOUR if row == SYNTHETIC else "black")
    figure.suptitle(title, fontsize=11, parse_math=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_column(axes: np.ndarray, name: str, column: Column, shape: Sequence[int], aspect: float) -> None:
    axes[0].set_title(name, fontsize=11, parse_math=False)
    for axis in axes:
        axis.imshow(np.full(shape, np.nan), aspect=aspect)  # empty cells are as large as the others
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    reference = column.real if column.real is not None else column.synthetic
    low, high = np.percentile(reference, (1, 99)) if reference is not None else (0, 1)
    high = max(high, low + 1e-6)
    window: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "aspect": aspect}
    if column.real is None:
        axes[0].text(0.5, 0.5, "missing", ha="center", va="center", color="0.45", transform=axes[0].transAxes)
    else:
        axes[0].imshow(column.real, **window)
        axes[0].set_xlabel(column.note, fontsize=8)
    if column.synthetic is None:
        return
    axes[1].imshow(column.synthetic, **window)
    axes[1].set_xlabel(column.caption, fontsize=8, parse_math=False)
    axes[1].spines[:].set(visible=True, color=SYNTHETIC_COLOUR, linewidth=1.5)
    if column.real is not None:
        difference = np.abs(column.synthetic - column.real)
        axes[2].imshow(difference, cmap="inferno", vmin=0, vmax=high - low, aspect=aspect)
