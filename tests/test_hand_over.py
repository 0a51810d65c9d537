"""What stage 3 takes over from stage 2 besides the weights."""

from __future__ import annotations

import pytest
import torch
from test_trainer_steps import SUBSETS, batch, folders, make  # noqa: F401

from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer


def momentum(made) -> dict[str, torch.Tensor]:
    state = made.optimizer.state
    return {
        name: state[parameter]["momentum_buffer"]
        for name, parameter in made.network.named_parameters()
        if "momentum_buffer" in state.get(parameter, {})
    }


@pytest.mark.parametrize("trainer", [UniMRSegStage2Trainer, UniMRSegModalityDropoutTrainer])
def test_what_goes_on_learning_keeps_its_momentum(trainer, tmp_path):
    before, after = make(trainer, final_lr=0.0), make(UniMRSegStage3Trainer)
    for _ in range(2):
        before.train_step(batch())
    path = tmp_path / "checkpoint_final.pth"
    before.save_checkpoint(str(path))
    after.take_initial_weights(path)
    kept, expected = momentum(after), momentum(before)
    assert kept.keys() == {name for name in expected if name.startswith("decoder.") and ".encoder." not in name}
    assert all(torch.equal(buffer, expected[name]) for name, buffer in kept.items())
    after.train_step(batch())
    assert torch.isfinite(torch.cat([buffer.flatten() for buffer in momentum(after).values()])).all()


def test_a_checkpoint_that_names_no_parameters_gives_no_momentum(tmp_path):
    before, after = make(UniMRSegStage2Trainer, final_lr=0.0), make(UniMRSegStage3Trainer)
    path = tmp_path / "checkpoint_final.pth"
    before.save_checkpoint(str(path))
    content = torch.load(path, weights_only=False)
    for group in content["optimizer_state"]["param_groups"]:
        del group["param_names"]
    torch.save(content, path)
    after.take_initial_weights(path)
    assert not momentum(after)


def test_labels_weigh_in_stage_3_what_they_weigh_in_stage_2(monkeypatch):
    made = make(UniMRSegStage3Trainer, feature_weight=0.0, prediction_weight=0.0, incomplete_label_weight=1.0)
    monkeypatch.setattr(made, "_deal_subsets", lambda _: SUBSETS)
    given = batch()
    monkeypatch.setattr(made, "loss", lambda *_: torch.ones((), requires_grad=True))
    assert float(made.compute_loss(given["data"], given["target"], given)) == pytest.approx(1.0)
