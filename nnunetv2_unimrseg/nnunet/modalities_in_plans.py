"""The modalities in plans: which channels belong together, as `unimrseg plan` takes it from dataset.json.

The network is built from the plans alone, so they must say it. They do in an entry of the configuration beside
`unimrseg`, which holds hyper-parameters only. Where it is absent, as in stock plans, each channel is a modality.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities, group_mistakes

MODALITIES_KEY = "unimrseg_modalities"
"""Entry of a configuration: the channel numbers of each modality by its name."""


def planned_channels(configuration: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return the channel numbers of each of the M modalities that a configuration plans, in channel order.

    Raises:
        UserError: when the entry is damaged.
    """
    numbers = [str(number) for number in range(len(configuration["normalization_schemes"]))]
    if MODALITIES_KEY not in configuration:
        return tuple((channel,) for channel in range(len(numbers)))
    found, groups = group_mistakes(configuration[MODALITIES_KEY], [f"channel {number}" for number in numbers])
    if found:
        raise UserError(f"'{MODALITIES_KEY}' of the plans is damaged: {' '.join(found)} Run `unimrseg plan` again.")
    return Modalities(numbers, groups).channels


def check_planned_modalities(
    configuration: Mapping[str, Any], modalities: Modalities, *, stock_allowed: bool = False
) -> None:
    """Check that plans group the channels as dataset.json does.

    Args:
        configuration: of the plans.
        modalities: of dataset.json.
        stock_allowed: whether plans that say nothing of modalities will do, as for a network that knows of none.

    Raises:
        UserError: when they do not.
    """
    planned = configuration.get(MODALITIES_KEY)
    if planned != modalities.groups and not (stock_allowed and planned is None):
        entry = f'"{MODALITIES_KEY}": {json.dumps(modalities.groups)}'
        stock = f" If these are plans of stock nnU-Net, add to the configuration: {entry}."
        raise UserError(
            "dataset.json and the plans do not group the channels alike: dataset.json has "
            f"{_describe(modalities.groups)}, the plans have {_describe(planned)}. Undo the change in dataset.json, or "
            f"plan, preprocess and train anew (`unimrseg plan`).{stock if planned is None else ''}"
        )


def _describe(groups: Mapping[str, Any] | None) -> str:
    return "each channel for itself" if groups is None else ", ".join(f"{name} {groups[name]}" for name in groups)
