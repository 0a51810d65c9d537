"""Several ranks: contrast as on the whole batch, stage 3's gradients as the mean of the ranks', incomplete data."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from networks import images, train_adapters, trained_network, unet
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training_steps import labels, segmentation_loss, stub

from nnunetv2_unimrseg.config import RetrofitConfig, Stage2Config, Stage3Config
from nnunetv2_unimrseg.data.case_table import TrainingCase
from nnunetv2_unimrseg.method.contrast import nt_xent
from nnunetv2_unimrseg.trainers.retrofit import UniMRSegRetrofitTrainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
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


MIXED = ("unlabelled_1", "labelled", "unlabelled_2", "without_c")
"""The cases of a batch of four; the first two are those of the first rank."""
TABLE = {
    "unlabelled_1": TrainingCase(tuple("abcd"), labelled=False),
    "unlabelled_2": TrainingCase(("a", "d"), labelled=False),
    "without_c": TrainingCase(("a", "b", "d"), labelled=True),
}
VIEWS = [
    torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 1]], dtype=torch.bool),
    torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 1, 0]], dtype=torch.bool),
]
SETTINGS = {
    "stage 2, pair": (
        UniMRSegStage2Trainer,
        Stage2Config(pairs_every=1, second_view="network", contrastive_weight=1.0),
    ),
    "stage 2, average": (UniMRSegStage2Trainer, Stage2Config(pairs_every=1, contrastive_weight=1.0)),
    "stage 2, one view": (UniMRSegStage2Trainer, Stage2Config(pairs_every=2)),
    "stage 3, pair": (UniMRSegStage3Trainer, Stage3Config()),
    "stage 3, pair, labels of the complete view": (UniMRSegStage3Trainer, Stage3Config(incomplete_label_weight=0.0)),
    "retrofit": (UniMRSegRetrofitTrainer, RetrofitConfig()),
}
MIXED_CASES = list(itertools.product(SETTINGS, (False, True)))
"""The step, and whether Dice is that of the whole batch."""


def mixed_gradients(step: str, batch_dice: bool, samples: slice, *, distributed: bool) -> dict[str, torch.Tensor]:
    """Gradients of a step on some samples of a batch whose cases lack labels and modalities."""
    trainer, settings = SETTINGS[step]
    network = trained_network(trainer.section)
    made = stub(trainer, network, "classes", settings, TABLE)
    made.loss = DeepSupervisionWrapper(segmentation_loss("classes", batch_dice=batch_dice, ddp=distributed), (1.0, 0.5))
    made._draw_one_view = lambda _: VIEWS[0][samples]
    made._draw_second_view = lambda _: VIEWS[1][samples]
    made._draw_views = made._deal_subsets = lambda _: [subsets[samples] for subsets in VIEWS]
    if distributed:
        made.network, made.is_ddp = DistributedDataParallel(network), True
    data = images(batch=4)
    data[2, 1:3] = data[3, 2] = math.nan
    target = torch.cat((labels("classes"), labels("classes").flip(0)))[samples]
    loss = made.compute_loss(data[samples], [target, target[..., ::2, ::2, ::2]], {"keys": MIXED[samples]})
    made.backward(loss)
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def mixed_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    samples = slice(2 * rank, 2 * rank + 2)
    found = [mixed_gradients(*case, samples, distributed=True) for case in MIXED_CASES]
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_unlabelled_and_incomplete_samples_have_the_gradients_of_the_joined_batch(tmp_path: Path):
    mp.spawn(mixed_on_rank, args=(str(tmp_path),), nprocs=2, join=True)
    on_ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for case, *found in zip(MIXED_CASES, *on_ranks, strict=True):
        joined = mixed_gradients(*case, slice(0, 4), distributed=False)
        assert any(gradient.any() for gradient in joined.values())
        for gradients in found:
            assert gradients.keys() == joined.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, joined[name], rtol=1e-3, atol=1e-5, msg=f"{case}: {name}")
