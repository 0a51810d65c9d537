"""The variants that `benchmark_accuracy.py` trains: the only table of them.

A variant is a chain of trainings. Each takes a share of the compute budget, which is counted in forward-backward
passes of the planned network over a patch, and settings of its section of the configuration (see `unimrseg
configure`); what is not set is the package's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Settings = Mapping[str, Any]

STOCK = "stock"
CONTROL = "control"
THREE_STAGES = "three_stages"
EARLIER_DEFAULT = "earlier_default"
EVERYWHERE = "adapters_everywhere"


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

SHARES = {"stage1": 0.018, "stage2": 0.782, "stage3": 0.2}
"""Shares of the three stages; those of the default epochs of `config.py` (a test compares them)."""


def three_stages(about: str, **settings: Settings) -> Variant:
    """Return all three stages with some settings changed."""
    return Variant(about, SHARES, settings)


NO_DROPOUT = {"subset_sampling": "per_modality", "dropout_probability": 0.0}
RARE_DROPOUT = {"subset_sampling": "per_modality", "dropout_probability": 0.2}
PAPERS_PAIR = {"views": "complete_and_incomplete"}
RARE_PAIR = {**PAPERS_PAIR, **RARE_DROPOUT}
"""Stage 2's defaults before the present ones."""
FIRST_PAIR = {**PAPERS_PAIR, "dropout_probability": 0.5, "pairs_every": 4}
"""And before those."""
EVERY_STAGE = {"adapter_first_stage": 0}
"""Stage 3's default before the present one."""

EARLIER_SETTINGS: Mapping[str, Mapping[str, Settings]] = {
    EARLIER_DEFAULT: {"stage2": RARE_PAIR, "stage3": EVERY_STAGE},
    EVERYWHERE: {"stage3": EVERY_STAGE},
}
"""Settings of earlier defaults, by the variants that have them and nothing else."""

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
    "stage2": Variant("stage 2 alone, from scratch", {"stage2": 1.0}),
    "stages_1_2": Variant("stages 1 and 2", {"stage1": SHARES["stage1"], "stage2": 1 - SHARES["stage1"]}),
    THREE_STAGES: three_stages("all three stages"),
    EARLIER_DEFAULT: three_stages(
        "all three stages, earlier default: each sample complete or with each modality dropped with probability 0.2",
        **EARLIER_SETTINGS[EARLIER_DEFAULT],
    ),
}

STAGE_1 = {
    "after_control": Variant("stage 3 after the control", {"modality_dropout": 0.8, "stage3": SHARES["stage3"]}),
    "no_stage1": Variant(
        "no stage 1: its share goes to stage 2",
        {"stage2": 1 - SHARES["stage3"], "stage3": SHARES["stage3"]},
    ),
    "long_stage1": Variant("stage 1 with a twentieth of the budget", {"stage1": 0.05, "stage2": 0.75, "stage3": 0.2}),
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
    "continuous_lr": three_stages("stage 2's learning rate ends where stage 3's begins", stage2={"final_lr": 2.5e-3}),
    "continuous_short": Variant(
        "stage 2's learning rate ends where stage 3's begins, and stage 3 has a tenth of the budget",
        {"stage1": SHARES["stage1"], "stage2": 0.9 - SHARES["stage1"], "stage3": 0.1},
        {"stage2": {"final_lr": 1.25e-3}, "stage3": {"initial_lr": 1.25e-3}},
    ),
}
"""How stage 2 passes the budget and the learning rate on to stage 3."""

STAGE_3 = {
    "no_adapters": three_stages("no adapters: the decoder alone learns", stage3={"adapters": False}),
    "adapters_any": three_stages(
        "adapters know only that something is missing (the paper's)", stage3={"adapters_know_modalities": False}
    ),
    EVERYWHERE: three_stages(
        "all three stages, adapters everywhere: at full resolution too (the paper's)", **EARLIER_SETTINGS[EVERYWHERE]
    ),
    "adapter_lr_10": three_stages("adapters learn ten times as fast", stage3={"adapter_lr_factor": 10.0}),
    "slow_stage3": three_stages("a quarter of stage 3's learning rate", stage3={"initial_lr": 6.25e-4}),
    "fast_stage3": three_stages("four times stage 3's learning rate", stage3={"initial_lr": 1e-2}),
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


def changed_from(baseline: str, variant: Variant) -> Variant:
    """Return the same change of an earlier default."""
    earlier = {
        section: {**settings, **variant.settings.get(section, {})}
        for section, settings in EARLIER_SETTINGS[baseline].items()
        if section in variant.shares
    }
    return replace(variant, settings={**variant.settings, **earlier}, baseline=baseline)


MEASURED_EARLIER = {
    EARLIER_DEFAULT: (
        "no_stage1", "long_stage1", "encoder_only", "no_adapters", "adapters_any", "slow_stage3", "rare_comparison",
        "no_feature_consistency", "no_prediction_consistency", "no_incomplete_labels", "subsets_all",
    ),
    EVERYWHERE: (
        "after_control", "papers_pair", "adapters_any", "slow_stage3", "fast_stage3", "no_prediction_consistency",
        "prediction_3",
    ),
}  # fmt: skip
"""Variants that were measured as changes of an earlier default."""


def measured_earlier(baseline: str, prefix: str) -> dict[str, Variant]:
    """Return those of one earlier default, with a prefix to their names."""
    present = {**STAGE_1, **STAGE_2, **STAGE_3}
    return {f"{prefix}_{name}": changed_from(baseline, present[name]) for name in MEASURED_EARLIER[baseline]}


EARLIER = {
    **measured_earlier(EARLIER_DEFAULT, "earlier"),
    **measured_earlier(EVERYWHERE, "everywhere"),
    "after_control_20": changed_from(
        EARLIER_DEFAULT,
        Variant(
            "stage 3 after the control that drops each modality with probability 0.2",
            {"modality_dropout": 0.8, "stage3": SHARES["stage3"]},
            {"modality_dropout": RARE_DROPOUT},
        ),
    ),
    "dropout_40": changed_from(
        EARLIER_DEFAULT, three_stages("dropout probability 0.4 in stage 2", stage2={"dropout_probability": 0.4})
    ),
    "no_stage1_papers_pair": Variant(
        "no stage 1, and all incomplete subsets alike in stage 2",
        {"stage2": 1 - SHARES["stage3"], "stage3": SHARES["stage3"]},
        {"stage2": PAPERS_PAIR, "stage3": EVERY_STAGE},
        EARLIER_DEFAULT,
    ),
    "after_stock": Variant(
        "stage 2 with all subsets alike, and stage 3, after a stock nnU-Net",
        {"modality_dropout": 0.4, "stage2": 0.4, "stage3": 0.2},
        {"modality_dropout": NO_DROPOUT, "stage2": FIRST_PAIR, "stage3": EVERY_STAGE},
        EARLIER_DEFAULT,
    ),
    "all_subsets_alike": Variant(
        "all incomplete subsets alike in stage 2, pairs in every fourth step, stage 1 with a twentieth of the budget",
        {"stage1": 0.05, "stage2": 0.75, "stage3": 0.2},
        {"stage2": FIRST_PAIR, "stage3": EVERY_STAGE},
        EARLIER_DEFAULT,
    ),
    "complete_first": Variant(
        "the same with complete samples only in the first 55 % of stage 2",
        {"stage1": 0.05, "stage2": 0.75, "stage3": 0.2},
        {"stage2": {**FIRST_PAIR, "complete_first": 0.55}, "stage3": EVERY_STAGE},
        EARLIER_DEFAULT,
    ),
}
"""What was measured with earlier defaults of stages 2 and 3."""

VARIANTS = {**MAIN, **STAGE_1, **STAGE_2, **HAND_OVER, **STAGE_3, **EARLIER}

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
    return [name, *(one for prefix in ("everywhere", "earlier") if (one := f"{prefix}_{name}") in VARIANTS)]
