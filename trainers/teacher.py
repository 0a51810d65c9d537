"""A moving average of the network's weights: it teaches samples without labels, and sees the second views."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor

from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet


class AverageTeacher:
    """A copy of a network whose weights follow it: after each step, teacher = decay * teacher + (1 - decay) * network.

    Args:
        network: the network, neither compiled nor distributed.
        decay: from 0 (the network itself) to 1 (the network as it was).

    Source: Tarvainen and Valpola 2017 (mean teacher).
    """

    def __init__(self, network: MissingModalityUNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.network.decoder.deep_supervision = False
        self.decay = decay

    @torch.no_grad()
    def follow(self, network: MissingModalityUNet) -> None:
        """Take a step towards the weights of the network; statistics of its norms are copied."""
        for own, other in zip(self.network.parameters(), network.parameters(), strict=True):
            own.lerp_(other, 1 - self.decay)
        for statistic, followed in zip(self.network.buffers(), network.buffers(), strict=True):
            statistic.copy_(followed)

    @torch.no_grad()
    def predict(self, data: Tensor) -> Tensor:
        """Return the logits `(B, K, X, Y[, Z])` for all modalities that `data` `(B, C, X, Y[, Z])` has."""
        return cast(Tensor, self.network(data))

    @torch.no_grad()
    def encoder_statistics(self, data: Tensor, available: Tensor) -> list[Tensor]:
        """Return what the network's `encoder_statistics` does, with the average weights."""
        return self.network.encoder_statistics(data, available)
