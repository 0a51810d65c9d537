"""Learning rates: nnU-Net's decay, where it ends, phases, and the adapters' own rate."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import tiny
import torch
from networks import unet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_unimrseg.config import Stage2Config, Stage3Config, TrainingConfig
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.step_cost import passes_per_sample
from nnunetv2_unimrseg.trainers.learning_rates import SMALLEST_SIZE, relative_group, scale_gradients_to_parameters
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

TRAINERS = (UniMRSegStage1Trainer, UniMRSegStage2Trainer, UniMRSegStage3Trainer, UniMRSegModalityDropoutTrainer)


@pytest.mark.parametrize("rate", [0.0, 5e-3, 0.1])
def test_adapters_learn_with_a_rate_of_their_own_in_every_epoch(rate, folders):
    made = tiny.trainer(UniMRSegStage3Trainer, initial_lr=1e-2, num_epochs=4, adapter_lr=rate)
    made.network = unet()
    made.network.freeze_encoder()
    optimizer, scheduler = made.configure_optimizers()
    decoder, adapters = optimizer.param_groups
    assert {id(parameter) for parameter in adapters["params"]} == set(map(id, made.network.adapters.parameters()))
    for epoch in range(4):
        scheduler.step(epoch)
        assert decoder["lr"] == pytest.approx(1e-2 * (1 - epoch / 4) ** 0.9)
        assert adapters["lr"] == pytest.approx(rate * (1 - epoch / 4) ** 0.9)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as on resuming
    scheduler.step(0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, rate])


def test_a_relative_step_changes_a_tensor_by_the_share_of_its_size_whatever_its_gradient():
    large, small, zero, unused, fixed = (
        torch.nn.Parameter(torch.full((4,), size)) for size in (8.0, 0.5, 0.0, 1.0, 1.0)
    )
    others = {"params": [fixed], "lr": 0.1}
    relative = relative_group([large, small, zero, unused], 0.1, 0.1)
    optimizer = torch.optim.SGD([relative, others], 0.1, momentum=0.99)
    (1e-6 * large.sum() + 1e3 * small.sum() - zero.sum() + 0 * unused.sum() + fixed.sum()).backward()
    scale_gradients_to_parameters(optimizer)
    optimizer.step()
    sizes = [float(one.norm() / 2) for one in (large, small, zero, unused, fixed)]
    assert sizes == pytest.approx([7.2, 0.45, 0.1 * SMALLEST_SIZE, 1.0, 0.9])


def test_the_encoder_is_annealed_before_stage_3_freezes_it(folders):
    made = tiny.trainer(UniMRSegStage2Trainer, initial_lr=1e-2, final_lr=2e-3, num_epochs=10)
    made.network = unet(adapters=False)
    optimizer, scheduler = made.configure_optimizers()
    others, encoder = optimizer.param_groups
    assert set(encoder["param_names"]) == {name for name, _ in made.network.named_parameters() if "encoder." in name}
    for epoch in range(11):
        scheduler.step(epoch)
        assert encoder["lr"] == pytest.approx(1e-2 * (1 - epoch / 10) ** 0.9)
    assert others["lr"] == pytest.approx(2e-3)


def learning_rates(trainer: type, configure: Callable | None = None, **settings: object) -> list[float]:
    """Return the learning rate of every epoch, and what would follow after the last."""
    made = tiny.trainer(trainer, **settings)
    made.network = unet(adapters=trainer is UniMRSegStage3Trainer)
    optimizer, scheduler = (configure or trainer.configure_optimizers)(made)
    rates = []
    for epoch in range(made.num_epochs + 1):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(("initial", "final"), [(1e-2, 2e-3), (0.5, 0.499), (1e-2, 1e-6)])
def test_the_learning_rate_ends_where_it_is_set(trainer, initial, final, folders):
    rates = learning_rates(trainer, num_epochs=40, initial_lr=initial, final_lr=final)
    # its power 1 / 0.9 falls in a straight line
    expected = np.linspace(initial ** (1 / 0.9), final ** (1 / 0.9), 41) ** 0.9
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_decay_to_zero_is_nnunets(trainer, folders):
    settings = {"num_epochs": 20, "initial_lr": 0.3, "final_lr": 0.0}
    assert learning_rates(trainer, **settings) == learning_rates(
        trainer, nnUNetTrainer.configure_optimizers, **settings
    )


def test_by_default_one_decay_of_the_learning_rate_goes_over_the_passes_of_stages_2_and_3(folders):
    second, third = (
        learning_rates(trainer, **{name: getattr(own, name) for name in ("num_epochs", "initial_lr", "final_lr")})
        for trainer, own in ((UniMRSegStage2Trainer, Stage2Config()), (UniMRSegStage3Trainer, Stage3Config()))
    )
    assert second[-1] == pytest.approx(third[0], rel=1e-6)
    (epochs_2, passes_2), (epochs_3, passes_3) = (
        (own.num_epochs, passes_per_sample(own, 4)) for own in (Stage2Config(), Stage3Config())
    )
    passes = np.concatenate([np.arange(epochs_2) * passes_2, epochs_2 * passes_2 + np.arange(epochs_3 + 1) * passes_3])
    one_decay = TrainingConfig().initial_lr * (1 - passes / passes[-1]) ** 0.9
    np.testing.assert_allclose([*second[:-1], *third], one_decay, rtol=0.03, atol=1e-12)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("final", [0.01, 0.02])
def test_a_learning_rate_that_does_not_fall_is_refused(trainer, final, folders):
    with pytest.raises(UserError, match=rf"{trainer.section}\.final_lr = {final} must be lower than .*0\.01"):
        tiny.trainer(trainer, initial_lr=0.01, final_lr=final)
    assert not folders.exists()
