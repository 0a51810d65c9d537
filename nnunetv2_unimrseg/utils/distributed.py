"""Gathering tensors from all ranks with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather


def gather_with_gradient(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Concatenate each tensor `(B, ...)` over all ranks, in rank order; gradients flow back to every rank.

    nnU-Net splits a batch unevenly where it must, so B may differ between ranks (but not between `tensors`).
    """
    own = torch.tensor([len(tensors[0])], device=tensors[0].device)
    all_counts = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_counts, own)
    counts = [int(count) for count in all_counts]
    gathered = []
    for tensor in tensors:
        padding = [0, 0] * (tensor.ndim - 1) + [0, max(counts) - len(tensor)]
        parts = all_gather(F.pad(tensor, padding).contiguous())
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]))
    return gathered
