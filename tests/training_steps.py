"""Training steps without nnU-Net's surroundings: a trainer's loss on a small network."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_unimrseg.data.case_table import TrainingCase
from nnunetv2_unimrseg.modalities import Modalities

METHODS = (
    "_view", "_draw_views", "_draw_one_view", "_teacher_view", "_student_view", "_deal_subsets",
    "_one_view_loss", "_consistency", "_taught_samples", "see_incomplete", "backward", "without_synchronisation",
    "supervised_loss", "labelled_samples", "own_modalities", "patient_name", "patient_numbers", "compute_loss",
    "forget_earlier_epochs", "incomplete_label_share", "_loss_of_view", "_teaches", "average",
    "_contrast", "_loss_of_pairs", "_draw_second_view",
)  # fmt: skip


def segmentation_loss(kind: str, *, batch_dice: bool = False, ddp: bool = False) -> torch.nn.Module:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": ddp}
    if kind == "regions":
        return DC_and_BCE_loss(
            {}, {**dice, "do_bg": True}, use_ignore_label=True, dice_class=MemoryEfficientSoftDiceLoss
        )
    return DC_and_CE_loss({**dice, "do_bg": False}, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)


def labels(kind: str, *, ignored: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "regions":
        target = torch.rand(2, 4, 16, 16, 16, generator=generator) > 0.5
        target[:, 3] = ignored
        return target
    return (
        torch.full((2, 1, 16, 16, 16), 3) if ignored else torch.randint(0, 3, (2, 1, 16, 16, 16), generator=generator)
    )


def stub(
    trainer: type,
    network: torch.nn.Module,
    kind: str,
    settings: object,
    case_table: dict[str, TrainingCase] | None = None,
) -> SimpleNamespace:
    """Just what `compute_loss` needs of a trainer."""
    case_table = case_table or {}
    made = SimpleNamespace(
        network=network, settings=settings, loss=segmentation_loss(kind), modalities=Modalities("abcd"), is_ddp=False,
        device=torch.device("cpu"), label_manager=SimpleNamespace(has_regions=kind == "regions"), current_epoch=10**6,
        num_epochs=1, unwrapped_network=network,
        grad_scaler=None, case_table=case_table, dataset_json={},
        unlabelled_cases={name for name, case in case_table.items() if not case.labelled},
    )  # fmt: skip
    for name in METHODS:
        if hasattr(trainer, name):
            setattr(made, name, getattr(trainer, name).__get__(made))
    made._samples_of_pairs = lambda _: slice(None)
    trainer.prepare(made)
    return made
