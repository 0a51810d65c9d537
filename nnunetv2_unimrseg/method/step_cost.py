"""How many views of each sample a training step looks at: what it costs."""

from __future__ import annotations

from nnunetv2_unimrseg.config import AdaptationConfig, RetrofitConfig, Stage2Config, Stage3Config, TrainingConfig

FORWARD = 1 / 3
"""Share of the work of a forward-backward pass that its forward pass is."""
ENCODER = 1 / 2
"""Share of the work of a forward pass that the encoder is: between 0.30 (plain U-Net, 128^3) and 0.68 (residual)."""


def incomplete_views(settings: AdaptationConfig, num_modalities: int) -> int:
    """Return how many incomplete views stage 3, or a retrofit, sees of each patch in a step."""
    every: int = 2**num_modalities - 2
    return every if settings.subsets_per_step == "all" else min(int(settings.subsets_per_step), every)


def passes_per_sample(settings: TrainingConfig, num_modalities: int) -> float:
    """Return the forward-backward passes over a patch that a step costs per sample, on average; stock's costs one."""
    if isinstance(settings, RetrofitConfig):  # whose teacher has no backward pass
        return FORWARD + incomplete_views(settings, num_modalities)
    if isinstance(settings, Stage2Config) and settings.second_view == "average" and settings.contrastive_weight > 0:
        return 1 + FORWARD * ENCODER / settings.pairs_every
    if isinstance(settings, Stage3Config):
        return 1 + incomplete_views(settings, num_modalities) / settings.pairs_every
    return 1
