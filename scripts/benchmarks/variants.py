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

STOCK = "stock"
CONTROL = "control"
THREE_STAGES = "three_stages"
ANNEALED = "annealed_stage2"
EVERYWHERE = "adapters_everywhere"
EARLIER_DEFAULT = "earlier_default"


@dataclass(frozen=True)
class Variant:
    """One way to spend the budget.

    Attributes:
        about: what it is, for the tables.
        shares: section of the configuration -> share of the budget, in the order of training.
        settings: section -> field -> value, besides the defaults.
        baseline: the variant that this one changes, with which it is compared.
    """

    about: str
    shares: Mapping[str, float]
    settings: Mapping[str, Settings] = field(default_factory=dict)
    baseline: str = THREE_STAGES


BUDGET_SETTINGS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every", "start_from")
"""Settings that the benchmark decides itself."""

SHARES = {"stage1": 0.018, "stage2": 0.882, "stage3": 0.1}
"""Shares of the three stages; those of the default epochs of `config.py` (a test compares them)."""
LONG_STAGE_3 = {"stage1": 0.018, "stage2": 0.782, "stage3": 0.2}
"""Those of earlier defaults."""

NO_DROPOUT = {"subset_sampling": "per_modality", "dropout_probability": 0.0}
RARE_DROPOUT = {"subset_sampling": "per_modality", "dropout_probability": 0.2}
PAPERS_PAIR = {"views": "complete_and_incomplete"}

ANNEALED_2 = {"final_lr": 0.0}
FASTER_3 = {"initial_lr": 2.5e-3}
"""Learning rates of stages 2 and 3 of all earlier defaults."""
EVERYWHERE_3 = {**FASTER_3, "adapter_first_stage": 0}
"""Stage 3 with an adapter after every encoder stage."""
RARE_PAIR = {**PAPERS_PAIR, **RARE_DROPOUT, **ANNEALED_2}
"""Stage 2 that seldom drops a modality."""
FIRST_PAIR = {**PAPERS_PAIR, **ANNEALED_2, "dropout_probability": 0.5, "pairs_every": 4}
"""Stage 2 of the very first default."""

EARLIER_DEFAULTS = {
    ANNEALED: Variant(
        "all three stages, stage 2 annealed: its learning rate ends at 0, and stage 3 has a fifth of the budget and "
        "starts with twice the rate",
        LONG_STAGE_3,
        {"stage2": ANNEALED_2, "stage3": FASTER_3},
    ),
    EVERYWHERE: Variant(
        "all three stages, adapters everywhere: at full resolution too (the paper's)",
        LONG_STAGE_3,
        {"stage2": ANNEALED_2, "stage3": EVERYWHERE_3},
        ANNEALED,
    ),
    EARLIER_DEFAULT: Variant(
        "all three stages, earlier default: each sample complete or with each modality dropped with probability 0.2, "
        "and adapters everywhere",
        LONG_STAGE_3,
        {"stage2": RARE_PAIR, "stage3": EVERYWHERE_3},
        ANNEALED,
    ),
}
"""What all three stages were before the present default, the latest first."""

MAIN = {
    STOCK: Variant(
        "stock nnU-Net: complete input only, zeros for what is missing",
        {"modality_dropout": 1.0},
        {"modality_dropout": NO_DROPOUT},
    ),
    CONTROL: Variant("control: stock nnU-Net with modality dropout, all subsets alike", {"modality_dropout": 1.0}),
    "control_20": Variant(
        "control that drops each modality with probability 0.2",
        {"modality_dropout": 1.0},
        {"modality_dropout": RARE_DROPOUT},
    ),
    "stage2": Variant("stage 2 alone, from scratch", {"stage2": 1.0}, {"stage2": ANNEALED_2}),
    "stages_1_2": Variant(
        "stages 1 and 2",
        {"stage1": SHARES["stage1"], "stage2": 1 - SHARES["stage1"]},
        {"stage2": ANNEALED_2},
    ),
    THREE_STAGES: Variant("all three stages", SHARES),
    ANNEALED: EARLIER_DEFAULTS[ANNEALED],
    EARLIER_DEFAULT: EARLIER_DEFAULTS[EARLIER_DEFAULT],
}


def three_stages(about: str, **settings: Settings) -> Variant:
    """Return all three stages with some settings changed."""
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

STAGE_2 = {
    "encoder_only": three_stages("of stage 1 the encoder alone is taken over", stage2={"stage1_decoder": False}),
    "papers_pair": three_stages(
        "the complete and a random incomplete view as the pair (the paper's)", stage2=PAPERS_PAIR
    ),
    "papers_stage2": three_stages(
        "the complete and a random incomplete view as the pair, in every step (the paper's)",
        stage2={**PAPERS_PAIR, "pairs_every": 1},
    ),
    "pairs_every_step": three_stages("pairs in every step", stage2={"pairs_every": 1}),
    "no_contrast": three_stages("no contrastive loss", stage2={"contrastive_weight": 0.0}),
    "contrast_1": three_stages("contrastive weight 1", stage2={"contrastive_weight": 1.0}),
    "temperature_01": three_stages("temperature 0.1", stage2={"temperature": 0.1}),
    "no_memory": three_stages("no memory of negatives", stage2={"negatives_memory": 0}),
}

HAND_OVER = {
    "long_stage3": Variant(
        "stage 3 has a fifth of the budget and starts with twice the rate, which stage 2 ends with",
        LONG_STAGE_3,
        {"stage2": {"final_lr": FASTER_3["initial_lr"]}, "stage3": FASTER_3},
    ),
}
"""How stage 2 passes the budget and the learning rate on to stage 3."""

STAGE_3 = {
    "no_adapters": three_stages("no adapters: the decoder alone learns", stage3={"adapters": False}),
    "adapters_any": three_stages(
        "adapters know only that something is missing (the paper's)", stage3={"adapters_know_modalities": False}
    ),
    "adapter_at_full_resolution": three_stages(
        "an adapter after every encoder stage (the paper's)", stage3={"adapter_first_stage": 0}
    ),
    "adapter_lr_10": three_stages("adapters learn ten times as fast", stage3={"adapter_lr_factor": 10.0}),
    "rare_comparison": three_stages("views compared in every fourth step of stage 3", stage3={"pairs_every": 4}),
    "no_reverse_attention": three_stages("adapters without reverse attention", stage3={"reverse_attention": False}),
    "no_feature_consistency": three_stages("no feature consistency", stage3={"feature_weight": 0.0}),
    "no_prediction_consistency": three_stages("no prediction consistency", stage3={"prediction_weight": 0.0}),
    "prediction_3": three_stages("prediction consistency with weight 3", stage3={"prediction_weight": 3.0}),
    "prediction_10": three_stages("prediction consistency with weight 10", stage3={"prediction_weight": 10.0}),
    "feature_3": three_stages("feature consistency with weight 3", stage3={"feature_weight": 3.0}),
    "no_consistency": three_stages("neither consistency", stage3={"feature_weight": 0.0, "prediction_weight": 0.0}),
    "no_incomplete_labels": three_stages(
        "labels on the complete view only (the paper's)", stage3={"incomplete_label_weight": 0.0}
    ),
    "subsets_3": three_stages("three incomplete views a step", stage3={"subsets_per_step": 3}),
    "subsets_all": three_stages("all incomplete views in every step", stage3={"subsets_per_step": "all"}),
    "no_encoder_gradients": three_stages(
        "no gradients through the frozen encoder", stage3={"gradients_through_encoder": False}
    ),
}


OF_EARLIER = {
    "after_control": Variant("stage 3 after the control", {"modality_dropout": 0.8, "stage3": 0.2}),
    "slow_stage3": three_stages("a quarter of stage 3's learning rate", stage3={"initial_lr": 6.25e-4}),
    "fast_stage3": three_stages("four times stage 3's learning rate", stage3={"initial_lr": 1e-2}),
}
"""Changes whose learning rates are those of earlier defaults."""


def with_stage3(shares: Mapping[str, float], stage3: float) -> dict[str, float]:
    """Return the shares with this one for stage 3, the last, at the cost of the training before it."""
    *_, before, _ = shares
    return {**shares, before: round(shares[before] + shares["stage3"] - stage3, 6), "stage3": stage3}


def changed_from(baseline: str, variant: Variant) -> Variant:
    """Return the same change of an earlier default."""
    earlier = EARLIER_DEFAULTS[baseline]
    shares = with_stage3(variant.shares, earlier.shares["stage3"])
    settings = {
        section: {**earlier.settings.get(section, {}), **variant.settings.get(section, {})} for section in shares
    }
    return Variant(variant.about, shares, settings, baseline)


MEASURED_EARLIER = {
    ANNEALED: (
        "no_shuffle", "no_masking", "papers_pair", "no_contrast", "no_adapters", "no_reverse_attention",
        "no_feature_consistency", "no_incomplete_labels",
    ),
    EVERYWHERE: (
        "after_control", "papers_pair", "adapters_any", "slow_stage3", "fast_stage3", "no_prediction_consistency",
        "prediction_3",
    ),
    EARLIER_DEFAULT: (
        "no_stage1", "long_stage1", "encoder_only", "no_adapters", "adapters_any", "slow_stage3", "rare_comparison",
        "no_feature_consistency", "no_prediction_consistency", "no_incomplete_labels", "subsets_all",
    ),
}  # fmt: skip
"""Variants that were measured as changes of an earlier default."""

PREFIXES = {ANNEALED: "annealed", EVERYWHERE: "everywhere", EARLIER_DEFAULT: "earlier"}
"""Of the names of such changes."""


def measured_earlier() -> dict[str, Variant]:
    """Return the changes of earlier defaults, with their prefixes."""
    changes = {**STAGE_1, **STAGE_2, **STAGE_3, **OF_EARLIER}
    return {
        f"{PREFIXES[baseline]}_{name}": changed_from(baseline, changes[name])
        for baseline, names in MEASURED_EARLIER.items()
        for name in names
    }


EARLIER = {
    EVERYWHERE: EARLIER_DEFAULTS[EVERYWHERE],
    **measured_earlier(),
    "after_control_20": changed_from(
        EARLIER_DEFAULT,
        Variant(
            "stage 3 after the control that drops each modality with probability 0.2",
            {"modality_dropout": 0.8, "stage3": 0.2},
            {"modality_dropout": RARE_DROPOUT},
        ),
    ),
    "dropout_40": changed_from(
        EARLIER_DEFAULT, three_stages("dropout probability 0.4 in stage 2", stage2={"dropout_probability": 0.4})
    ),
    "no_stage1_papers_pair": Variant(
        "no stage 1, and all incomplete subsets alike in stage 2",
        {"stage2": 0.8, "stage3": 0.2},
        {"stage2": {**PAPERS_PAIR, **ANNEALED_2}, "stage3": EVERYWHERE_3},
        EARLIER_DEFAULT,
    ),
    "after_stock": Variant(
        "stage 2 with all subsets alike, and stage 3, after a stock nnU-Net",
        {"modality_dropout": 0.4, "stage2": 0.4, "stage3": 0.2},
        {"modality_dropout": NO_DROPOUT, "stage2": FIRST_PAIR, "stage3": EVERYWHERE_3},
        EARLIER_DEFAULT,
    ),
    "all_subsets_alike": Variant(
        "all incomplete subsets alike in stage 2, pairs in every fourth step, stage 1 with a twentieth of the budget",
        {"stage1": 0.05, "stage2": 0.75, "stage3": 0.2},
        {"stage2": FIRST_PAIR, "stage3": EVERYWHERE_3},
        EARLIER_DEFAULT,
    ),
    "complete_first": Variant(
        "the same with complete samples only in the first 55 % of stage 2",
        {"stage1": 0.05, "stage2": 0.75, "stage3": 0.2},
        {"stage2": {**FIRST_PAIR, "complete_first": 0.55}, "stage3": EVERYWHERE_3},
        EARLIER_DEFAULT,
    ),
}
"""What was measured with earlier defaults."""

VARIANTS = {**MAIN, **HAND_OVER, **STAGE_1, **STAGE_2, **STAGE_3, **EARLIER}

PARTS = {
    "stage 1": "no_stage1",
    "modality shuffle": "no_shuffle",
    "block masking": "no_masking",
    "stages 1 and 2, instead of the control": "after_control",
    "contrastive loss": "no_contrast",
    "stage 3": "stages_1_2",
    "adapters": "no_adapters",
    "reverse attention": "no_reverse_attention",
    "feature consistency": "no_feature_consistency",
    "prediction consistency": "no_prediction_consistency",
    "labels on incomplete views": "no_incomplete_labels",
}
"""Parts of the method, and the variants that do without them."""


def without(part: str) -> list[str]:
    """Return the variants without a part of the method, the default's and those of earlier defaults."""
    name = PARTS[part]
    return [name, *(one for prefix in PREFIXES.values() if (one := f"{prefix}_{name}") in VARIANTS)]
