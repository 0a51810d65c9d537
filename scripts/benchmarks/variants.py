"""The variants that `accuracy.py` trains: the only table of them.

A variant is a chain of trainings. Each takes a share of the compute budget, which is counted in forward-backward
passes of the planned network over a patch, and settings of its section of the configuration (see `unimrseg
configure`); what is not set is the package's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]

STOCK = "stock"
CONTROL = "control"
STAGES_1_2 = "stages_1_2"
THREE_STAGES = "three_stages"


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


BUDGET_SETTINGS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every", "start_from")
"""Settings that the benchmark decides itself."""

SHARES = {"stage1": 0.018, "stage2": 0.882, "stage3": 0.1}
"""Shares of the three stages; those of the default epochs of `config.py` (a test compares them)."""

MAIN = {
    STOCK: Variant(
        "stock nnU-Net: complete input only, zeros for what is missing",
        {"modality_dropout": 1.0},
        {"modality_dropout": {"subset_sampling": "per_modality", "dropout_probability": 0.0}},
    ),
    CONTROL: Variant("control: stock nnU-Net with modality dropout, all subsets alike", {"modality_dropout": 1.0}),
    STAGES_1_2: Variant(
        "stages 1 and 2",
        {"stage1": SHARES["stage1"], "stage2": 1 - SHARES["stage1"]},
        {"stage2": {"final_lr": 0.0}},
    ),
    THREE_STAGES: Variant("all three stages", SHARES),
}
"""What the main tables compare."""


def three_stages(about: str, **settings: Settings) -> Variant:
    """Return all three stages with one setting changed."""
    return Variant(about, SHARES, settings)


STAGE_1 = {
    "after_control": Variant(
        "stage 3 after the control",
        {"modality_dropout": 1 - SHARES["stage3"], "stage3": SHARES["stage3"]},
        {"modality_dropout": {"final_lr": 1.25e-3}},
    ),
    "no_stage1": Variant(
        "no stage 1: its share goes to stage 2", {"stage2": 1 - SHARES["stage3"], "stage3": SHARES["stage3"]}
    ),
    "long_stage1": Variant(
        "stage 1 with a twentieth of the budget",
        {"stage1": 0.05, "stage2": 0.95 - SHARES["stage3"], "stage3": SHARES["stage3"]},
    ),
    "no_shuffle": three_stages("no modality shuffle", stage1={"shuffle_probability": 0.0}),
    "no_masking": three_stages("no block masking", stage1={"mask_probability": 0.0}),
    "mask_block_4": three_stages("masked blocks of 4 voxels", stage1={"mask_block_size": 4}),
    "mask_block_16": three_stages("masked blocks of 16 voxels", stage1={"mask_block_size": 16}),
    "mask_ratio_50": three_stages("half of the blocks masked", stage1={"mask_ratio": 0.5}),
}
"""The three stages with one change of stage 1, or without it."""

STAGE_2 = {
    "encoder_only": three_stages("of stage 1 the encoder alone is taken over", stage2={"stage1_decoder": False}),
    "papers_pair": three_stages(
        "the complete and a random incomplete view as the pair (the paper's)",
        stage2={"views": "complete_and_incomplete"},
    ),
    "pairs_every_step": three_stages("pairs in every step (the paper's)", stage2={"pairs_every": 1}),
    "no_contrast": three_stages("no contrastive loss", stage2={"contrastive_weight": 0.0}),
    "contrast_1": three_stages("contrastive weight 1", stage2={"contrastive_weight": 1.0}),
    "temperature_01": three_stages("temperature 0.1", stage2={"temperature": 0.1}),
    "no_memory": three_stages("no memory of negatives", stage2={"negatives_memory": 0}),
}
"""The three stages with one change of stage 2."""

STAGE_3 = {
    "no_adapters": three_stages("no adapters: the decoder alone learns", stage3={"adapters": False}),
    "adapters_any": three_stages(
        "adapters know only that something is missing (the paper's)", stage3={"adapters_know_modalities": False}
    ),
    "adapter_at_full_resolution": three_stages(
        "an adapter after every encoder stage (the paper's)", stage3={"adapter_first_stage": 0}
    ),
    "adapter_lr_003": three_stages("adapters learn at 0.03", stage3={"adapter_lr": 0.03}),
    "rare_comparison": three_stages("views compared in every fourth step of stage 3", stage3={"pairs_every": 4}),
    "no_reverse_attention": three_stages("adapters without reverse attention", stage3={"reverse_attention": False}),
    "no_feature_consistency": three_stages("no feature consistency", stage3={"feature_weight": 0.0}),
    "no_prediction_consistency": three_stages("no prediction consistency", stage3={"prediction_weight": 0.0}),
    "prediction_3": three_stages("prediction consistency with weight 3", stage3={"prediction_weight": 3.0}),
    "prediction_10": three_stages("prediction consistency with weight 10", stage3={"prediction_weight": 10.0}),
    "feature_3": three_stages("feature consistency with weight 3", stage3={"feature_weight": 3.0}),
    "no_incomplete_labels": three_stages(
        "labels on the complete view only (the paper's)", stage3={"incomplete_label_weight": 0.0}
    ),
    "subsets_3": three_stages("three incomplete views a step", stage3={"subsets_per_step": 3}),
    "subsets_all": three_stages("all incomplete views in every step", stage3={"subsets_per_step": "all"}),
    "no_encoder_gradients": three_stages(
        "no gradients through the frozen encoder", stage3={"gradients_through_encoder": False}
    ),
}
"""The three stages with one change of stage 3."""

VARIANTS = {**MAIN, **STAGE_1, **STAGE_2, **STAGE_3}
