"""How many views a training step looks at, of how many samples: what a step costs."""

from __future__ import annotations

from nnunetv2_unimrseg.config import Stage2Config, Stage3Config, TrainingConfig, ViewsConfig


def incomplete_views(stage3: Stage3Config, num_modalities: int) -> int:
    """Return how many incomplete views stage 3 sees of each patch in a step."""
    every = 2**num_modalities - 2
    return every if stage3.subsets_per_step == "all" else min(int(stage3.subsets_per_step), every)


def views_per_sample(settings: TrainingConfig, num_modalities: int) -> int:
    """Return how many views of each sample a step of the stage with these settings looks at."""
    if isinstance(settings, Stage3Config):
        return 1 + incomplete_views(settings, num_modalities)
    return 2 if isinstance(settings, Stage2Config) else 1


def samples_per_step(settings: TrainingConfig, num_modalities: int, batch_size: int) -> int:
    """Return how many samples a step looks at, where the plans ask for `batch_size`."""
    if isinstance(settings, ViewsConfig) and settings.views_share_batch:
        return max(1, batch_size // views_per_sample(settings, num_modalities))
    return batch_size


def passes_per_step(settings: TrainingConfig, num_modalities: int, batch_size: int) -> float:
    """Return the forward-backward passes over a patch that a step costs on average; stock's costs `batch_size`."""
    views = views_per_sample(settings, num_modalities)
    if isinstance(settings, Stage2Config):
        views = 1 + (views - 1) / settings.pairs_every
    return samples_per_step(settings, num_modalities, batch_size) * views
