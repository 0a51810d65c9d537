"""Several ranks: contrast as on the whole batch, and stage 3's gradients as the mean of the ranks'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from networks import images, train_adapters, unet
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training_steps import labels, stub

from nnunetv2_unimrseg.config import Stage3Config
from nnunetv2_unimrseg.method.losses import nt_xent
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer
from nnunetv2_unimrseg.utils.distributed import gather_with_gradient

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


SUBSETS = [torch.tensor([subset]) for subset in ((True, False, True, True), (False, True, False, False))]


def stage_3_gradients(sample: int, label_weight: float, *, distributed: bool) -> dict[str, torch.Tensor]:
    """Gradients of a second step on one sample; the first shows that a step leaves nothing waiting."""
    network = unet(deep_supervision=True)
    train_adapters(network)
    network.freeze_encoder()
    made = stub(UniMRSegStage3Trainer, network, "classes", Stage3Config(incomplete_label_weight=label_weight))
    made._deal_subsets = lambda _: SUBSETS
    made.loss = DeepSupervisionWrapper(made.loss, (1.0, 0.5))
    if distributed:
        made.network, made.is_ddp = DistributedDataParallel(network), True
    data, target = (whole[sample : sample + 1] for whole in (images(), labels("classes")))
    target = [target, target[:, :, ::2, ::2, ::2]]
    for _ in range(2):
        network.zero_grad()
        made.backward(made.compute_loss(data, target, {"keys": ["p"]}))
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def stage_3_on_rank(rank: int, folder: str, label_weight: float) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(stage_3_gradients(rank, label_weight, distributed=True), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("label_weight", [0.0, 1.0])
def test_stage_3_on_two_ranks_has_the_mean_of_their_gradients(tmp_path: Path, label_weight):
    mp.spawn(stage_3_on_rank, args=(str(tmp_path), label_weight), nprocs=2, join=True)
    alone = [stage_3_gradients(rank, label_weight, distributed=False) for rank in range(2)]
    for rank in range(2):
        together = torch.load(tmp_path / f"rank{rank}.pt")
        assert together.keys() == alone[0].keys()
        for name, gradient in together.items():
            torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, msg=name)
