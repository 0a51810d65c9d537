"""The variants that `benchmark_accuracy.py` trains: the only table of them.

A variant is a chain of trainings. Each takes a share of the compute budget, which is counted in forward-backward
passes of the planned network over a patch, and settings of its section of the configuration (see `unimrseg
configure`); what is not set is the package's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to spend the budget.

    Attributes:
        about: what it is, for the tables.
        shares: section of the configuration -> share of the budget, in the order of training.
        settings: section -> field -> value, besides the defaults.
    """

    about: str
    shares: Mapping[str, float]
    settings: Mapping[str, Settings] = field(default_factory=dict)


HANDOVER = {"stage1": 0.05, "stage2": 0.75, "stage3": 0.2}
"""Shares of the default three stages; those of `config.py`'s epochs (a test compares them)."""


def three_stages(about: str, shares: Mapping[str, float] = HANDOVER, **settings: Settings) -> Variant:
    """Return all three stages with some settings changed."""
    return Variant(about, shares, settings)


STOCK = "stock"
CONTROL = "control"
THREE_STAGES = "three_stages"

MAIN = {
    STOCK: Variant(
        "stock nnU-Net: complete input only, zeros for what is missing",
        {"modality_dropout": 1.0},
        {"modality_dropout": {"subset_sampling": "per_modality", "dropout_probability": 0.0}},
    ),
    CONTROL: Variant("control: stock nnU-Net with modality dropout", {"modality_dropout": 1.0}),
    "stage2": Variant("stage 2 alone, from scratch", {"stage2": 1.0}, {"stage2": {"final_lr": 0.0}}),
    "stages_1_2": Variant("stages 1 and 2", {"stage1": 0.05, "stage2": 0.95}, {"stage2": {"final_lr": 0.0}}),
    THREE_STAGES: three_stages("all three stages"),
}

VARIANTS = {**MAIN}
