"""How fast each group of parameters learns: nnU-Net's decay, where it ends, and steps relative to a tensor's size."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor

POLY_EXPONENT = 0.9
"""Exponent of the polynomial decay of the learning rate, as in nnU-Net."""

LR_FACTOR = "lr_factor"
"""Key of a group of parameters: its learning rate divided by the schedule's."""

ANNEALED = "annealed"
"""Key of a group of parameters whose learning rate decays to zero, whatever the schedule's final rate."""

RELATIVE = "relative"
"""Key of a group of parameters that learn by `scale_gradients_to_parameters`."""

RELATIVE_MOMENTUM = 0.9
"""Of such groups: nnU-Net's 0.99 needs hundreds of steps to get under way, and the adapters have no more."""

SMALLEST_SIZE = 1e-2
"""Root mean square that a tensor is taken to have at least: one that starts at zero could not change otherwise."""


class FlooredPolyLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay to a rate that may be above zero, times the factor of each group of parameters.

    Args:
        optimizer: its groups name their `LR_FACTOR`; those that are `ANNEALED` end at zero.
        initial_lr: learning rate at the first epoch.
        final_lr: learning rate that would follow after the last epoch.
        num_epochs: of the training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, final_lr: float, num_epochs: int) -> None:
        share_left = (final_lr / initial_lr) ** (1 / POLY_EXPONENT) if final_lr else 0
        self.num_epochs = num_epochs
        super().__init__(optimizer, initial_lr, num_epochs / (1 - share_left), POLY_EXPONENT)

    def step(self, current_step: int | None = None) -> None:
        epoch = 0 if current_step is None or current_step == -1 else current_step
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if group.get(ANNEALED):
                group["lr"] = self.initial_lr * max(0.0, 1 - epoch / self.num_epochs) ** POLY_EXPONENT
            group["lr"] *= group[LR_FACTOR]


def relative_group(parameters: list[Any], learning_rate: float, schedules_rate: float) -> dict[str, Any]:
    """Return a group of parameters whose steps are relative to their size.

    Args:
        parameters: with their names.
        learning_rate: of this group at the first epoch, as a share of a tensor's size.
        schedules_rate: what the schedule gives at the first epoch.
    """
    factor = learning_rate / schedules_rate if schedules_rate else 0.0
    return {"params": parameters, LR_FACTOR: factor, RELATIVE: True, "momentum": RELATIVE_MOMENTUM}


@torch.no_grad()
def scale_gradients_to_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the gradient of each tensor in a `RELATIVE` group the tensor's own norm, so that the rate is a share of it.

    Source: You et al. 2017 (LARS), its trust ratio with coefficient 1.
    """
    for group in optimizer.param_groups:
        if group.get(RELATIVE):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    norm = parameter.grad.norm()
                    parameter.grad *= torch.where(norm > 0, _size(parameter) / norm, 0)


def _size(parameter: Tensor) -> Tensor:
    size: Tensor = parameter.norm()
    return size.clamp(min=SMALLEST_SIZE * parameter.numel() ** 0.5)
