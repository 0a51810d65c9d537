"""The values that a label may hold, and the unknown ones that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

MOST_NAMED_VALUES = 5


def known_labels(label_manager: LabelManager) -> frozenset[int]:
    """Return the values that a label file may hold: background, labels, those of regions, ignore."""
    values = {0, *label_manager.all_labels, label_manager.ignore_label} - {None}
    return frozenset(int(value) for value in values)


def unknown_values(label: np.ndarray, known: frozenset[int]) -> str:
    """List the values of a label that the dataset has not ("255; the dataset's labels are 0, 1"); "" for none."""
    strange = sorted(set(pd.unique(label.ravel()).tolist()) - known)
    if not strange:
        return ""
    shown = ", ".join(f"{value:g}" for value in strange[:MOST_NAMED_VALUES])
    more = ", ..." if len(strange) > MOST_NAMED_VALUES else ""
    return (
        f"the {'value' if len(strange) == 1 else 'values'} {shown}{more}; the dataset's labels are "
        f"{', '.join(map(str, sorted(known)))}. Correct the label, or declare the value in dataset.json"
    )
