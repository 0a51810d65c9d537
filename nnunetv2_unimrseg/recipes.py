"""Sets of choices for `unimrseg configure --recipe`: the paper's, and those of a short training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Mapping[str, Any]]
"""Section of the configuration -> field -> value."""

SHORT_EPOCHS = {"stage1": 2, "stage2": 20, "stage3": 3, "modality_dropout": 25, "retrofit": 3}
SHORT_RATES = {
    "stage2": {"initial_lr": 0.03, "final_lr": 0.00375},
    "stage3": {"initial_lr": 0.00375},
    "modality_dropout": {"initial_lr": 0.03},
    "retrofit": {"initial_lr": 0.00375},
}
"""nnU-Net's learning rates are for 250 000 steps; in a few hundred, higher ones find small structures at all."""

PAPER: Settings = {
    "stage2": {
        "views": "complete_and_incomplete",
        "pairs_every": 1,
        "second_view": "network",
        "temperature": 0.5,
        "negatives_memory": 0,
    },
    "stage3": {
        "subsets_per_step": "all",
        "feature_weight": 1.0,
        "incomplete_label_weight": 0.0,
        "adapters_know_modalities": False,
        "adapter_first_stage": 0,
    },
}
"""Where the paper's choice differs from the default."""

SHORT: Settings = {
    section: {
        "num_epochs": epochs,
        "num_iterations_per_epoch": 50,
        "num_val_iterations_per_epoch": 5,
        **SHORT_RATES.get(section, {}),
    }
    for section, epochs in SHORT_EPOCHS.items()
}

RECIPES: Mapping[str, tuple[str, Settings]] = {
    "default": ("The defaults.", {}),
    "paper": (
        "The paper's choices wherever the defaults differ. The epochs are as many, but a step of stage 3 takes many "
        "times as long.",
        PAPER,
    ),
    "short": ("A training of some minutes on a CPU, for a first look. The demo uses it.", SHORT),
}
"""What each recipe is for, and what it sets."""


def apply_recipe(name: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return `settings` with those of the recipe in them; what only other recipes set is back at its default."""
    of_recipes = {
        (section, field) for _, recipe in RECIPES.values() for section, fields in recipe.items() for field in fields
    }
    result = {
        section: {field: value for field, value in fields.items() if (section, field) not in of_recipes}
        for section, fields in settings.items()
    }
    for section, fields in RECIPES[name][1].items():
        result.setdefault(section, {}).update(fields)
    return {section: fields for section, fields in result.items() if fields}
