"""Training that can be repeated: what is drawn in an epoch depends on the seed and the epoch alone."""

from __future__ import annotations

import random

import numpy as np
import torch

RANDOM_SEED = -1
"""Value of the field `seed` that stands for another seed each time."""


def seed_generators(seed: int, *numbers: int) -> None:
    """Seed the generators of Python, numpy and torch, from which weights, patches and augmentation are drawn.

    Args:
        seed: of the training, at least 0.
        numbers: what the draws belong to, as epoch and process; other numbers give other draws.
    """
    for_python, for_numpy, for_torch = map(int, np.random.SeedSequence([seed, *numbers]).generate_state(3))
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)
