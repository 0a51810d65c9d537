"""Contrast over several ranks equals contrast on the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from nnunetv2_unimrseg.distributed import gather_with_gradient
from nnunetv2_unimrseg.losses import nt_xent

PATIENTS = torch.tensor([0, 1, 1, 2, 3])
SPLIT = (slice(0, 3), slice(3, 5))
"""nnU-Net gives the first ranks more samples where a batch does not divide."""


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)


def contrast_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = [view[SPLIT[rank]].clone().requires_grad_() for view in views()]
    (first,), (second,), (patients,) = (
        gather_with_gradient([part]) for part in (own[0], own[1], PATIENTS[SPLIT[rank]])
    )
    loss = nt_xent(first, second, patients)
    loss.backward()
    torch.save({"loss": loss.detach(), "gradients": [view.grad for view in own]}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_uneven_batches(tmp_path: Path):
    mp.spawn(contrast_on_rank, args=(str(tmp_path),), nprocs=2, join=True)
    first, second = (view.requires_grad_() for view in views())
    loss = nt_xent(first, second, PATIENTS)
    loss.backward()
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["loss"], loss.detach())
        for whole, part in zip((first, second), result["gradients"], strict=True):
            # DDP averages over ranks what the gather's backward pass has summed
            torch.testing.assert_close(part / 2, whole.grad[SPLIT[rank]])
