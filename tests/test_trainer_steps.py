"""Real trainer objects on a few random patches: steps, validation, and where their weights come from."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.augmentation import draw_corruption
from nnunetv2_unimrseg.method.losses import feature_consistency, prediction_consistency, reconstruction_loss
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.retrofit import UniMRSegRetrofitTrainer
from nnunetv2_unimrseg.trainers.segmentation import mark_missing
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

CONFIGURATION = "3d_fullres"
SEGMENTING = (UniMRSegStage2Trainer, UniMRSegStage3Trainer, UniMRSegRetrofitTrainer, UniMRSegModalityDropoutTrainer)
TRAINERS = (UniMRSegStage1Trainer, *SEGMENTING)
CLASSES = {"background": 0, "whole": 1, "core": 2}
LABELS = {
    "classes": {"labels": {**CLASSES, "ignore": 3}},
    "regions": {
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "regions_class_order": [1, 2],
    },
}


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    """nnU-Net's folders, with a preprocessed case only by name."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_compile", raising=False)
    cases = tmp_path / "preprocessed" / "Dataset998_Tiny" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()
    torch.manual_seed(0)


def plans(settings: dict | None = None) -> dict:
    made = tiny.plans()
    configuration = made["configurations"][CONFIGURATION]
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3, features_per_stage=[4, 8, 12], kernel_sizes=[[3, 3, 3]] * 3, n_conv_per_stage=[1, 1, 1],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], n_conv_per_stage_decoder=[1, 1],
    )  # fmt: skip
    configuration["unimrseg"] = settings or {}
    return made


ALL_VIEWS = {
    UniMRSegStage2Trainer: {"pairs_every": 1},
    UniMRSegStage3Trainer: {"pairs_every": 1},
}


def make(trainer: type, labels: str = "classes", **settings: object) -> nn.Module:
    """A trainer that sees all views in every step, unless `settings` say else."""
    section = {"cpu_precision": "float32", **ALL_VIEWS.get(trainer, {}), **settings}
    dataset = {**tiny.dataset_json(), **LABELS[labels]}
    made = trainer(
        {**plans({trainer.section: section}), "continue_training": False},
        CONFIGURATION, 0, dataset, torch.device("cpu"),
    )  # fmt: skip
    made.initialize()
    return made


def batch(labels: str = "classes", *, ignored: bool = False) -> dict:
    generator = torch.Generator().manual_seed(1)
    target = []
    for edge in (16, 8):
        if labels == "regions":
            scale = (torch.rand(2, 3, edge, edge, edge, generator=generator) > 0.5).to(torch.int16)
            scale[:, 2] = ignored
        else:
            scale = torch.randint(0, 3, (2, 1, edge, edge, edge), generator=generator, dtype=torch.int16)
            scale = torch.full_like(scale, 3) if ignored else scale
        target.append(scale)
    data = torch.randn(2, 4, 16, 16, 16, generator=generator)
    data[1, 2] = math.nan
    return {"data": data, "target": target, "keys": ["patient_1", "patient_2"]}


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def parts(keys: set[str]) -> set[str]:
    return {key.split(".")[0] for key in keys}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_steps_learn(trainer, precision):
    made = make(trainer, cpu_precision=precision, initial_lr=1e-2, final_lr=0.0)
    made.network.train()
    before = weights(made.network)
    for _ in range(2):
        loss = made.train_step(batch())["loss"]
        assert loss.dtype == np.float32
        assert np.isfinite(loss)
    after = weights(made.network)
    assert all(torch.isfinite(value).all() for value in after.values())
    expected = {
        UniMRSegStage3Trainer: {"adapters", "decoder"},
        UniMRSegRetrofitTrainer: {"adapters", "incomplete_decoder"},
    }
    assert parts(changed(before, after)) == expected.get(trainer, {"encoder", "decoder"})


SUBSETS = [
    torch.tensor([[True, False, False, True], [False, True, False, True]]),
    torch.tensor([[False, True, True, True], [True, False, False, False]]),
]


@pytest.mark.parametrize("labels", LABELS)
def test_loss_of_stage_3_is_the_teachers_and_the_mean_over_students(monkeypatch, labels):
    made = make(
        UniMRSegStage3Trainer, labels, feature_weight=0.5, prediction_weight=2.0, incomplete_label_weight=0.3
    )  # fmt: skip
    for adapter in made.network.adapters:
        nn.init.normal_(adapter.scale)
        adapter.project.reset_parameters()
    monkeypatch.setattr(made, "_deal_subsets", lambda _: SUBSETS)
    given = batch(labels)
    data, target = given["data"], given["target"]
    teacher, teacher_features = made.network(data, skip_adapters=True, return_features=True)
    taught = [features.detach() for features in teacher_features]
    students = []
    for subset in SUBSETS:
        logits, features = made.network(data, subset, return_features=True)
        distance = prediction_consistency(logits[0], teacher[0].detach(), regions=labels == "regions")
        alike = feature_consistency(features, taught)
        students.append(0.5 * alike + 2.0 * distance + 0.3 / 1.3 * made.loss(logits, target))
    expected = made.loss(teacher, target) / 1.3 + (students[0] + students[1]) / 2
    learning = [parameter for parameter in made.network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(expected, learning, allow_unused=True)
    loss = made.compute_loss(data, target, given)
    torch.testing.assert_close(loss, expected)
    made.backward(loss)
    for parameter, gradient in zip(learning, gradients, strict=True):
        torch.testing.assert_close(*(torch.zeros(1) if g is None else g for g in (parameter.grad, gradient)))


def test_the_control_sees_one_random_subset(monkeypatch):
    made = make(UniMRSegModalityDropoutTrainer)
    monkeypatch.setattr("nnunetv2_unimrseg.trainers.modality_dropout.draw_subsets", lambda *_: SUBSETS[0])
    given = batch()
    expected = made.loss(made.network(given["data"], SUBSETS[0]), given["target"])
    torch.testing.assert_close(made.compute_loss(given["data"], given["target"], given), expected)


def test_the_encoder_of_stage_3_stays_bit_for_bit_also_with_weight_decay():
    made = make(UniMRSegStage3Trainer, weight_decay=0.1, initial_lr=0.1, final_lr=0.0)
    made.on_train_epoch_start()
    before = weights(made.network)
    made.train_step(batch())
    learned = changed(before, weights(made.network))
    assert not any(key.startswith("encoder.") for key in learned)
    assert any(key.startswith("adapters.") for key in learned)
    assert any(key.startswith("decoder.") for key in learned)


def test_stage_3_without_adapters_teaches_the_decoder_alone():
    made = make(UniMRSegStage3Trainer, adapters=False)
    assert made.network.adapters is None
    assert made.network.state_dict().keys() == make(UniMRSegStage2Trainer).network.state_dict().keys()
    made.on_train_epoch_start()
    before = weights(made.network)
    assert np.isfinite(made.train_step(batch())["loss"])
    assert parts(changed(before, weights(made.network))) == {"decoder"}


def test_stage_1_does_not_look_at_labels_and_teaches_one_head():
    made = make(UniMRSegStage1Trainer)
    made.network.train()
    before = weights(made.network)
    made.train_step({**batch(), "target": torch.full((2, 1, 16, 16, 16), 77)})
    heads = {key for key in changed(before, weights(made.network)) if ".seg_layers." in key}
    assert heads == {"decoder.seg_layers.1.weight", "decoder.seg_layers.1.bias"}


def test_stage_1_has_no_head_without_a_gradient():
    made = make(UniMRSegStage1Trainer)
    learning = [all(p.requires_grad for p in head.parameters()) for head in made.network.decoder.seg_layers]
    assert learning == [False, True]


def test_loss_of_stage_1_compares_the_corrupted_with_the_complete_patch():
    made = make(UniMRSegStage1Trainer, shuffle_probability=1.0)
    given = batch()
    torch.manual_seed(3)
    loss = made.compute_loss(given["data"], given["target"], given)
    torch.manual_seed(3)
    corrupted, available = draw_corruption(given["data"].shape, made.settings).apply(given["data"])
    complete, known = given["data"].nan_to_num(0), ~given["data"].isnan().flatten(2).any(2)
    expected = reconstruction_loss(made.network(corrupted, available), complete, known=known)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_limited_after_their_scale_is_undone(monkeypatch, scaled):
    made = make(UniMRSegModalityDropoutTrainer)
    made.grad_scaler = torch.amp.GradScaler("cpu") if scaled else None
    monkeypatch.setattr("nnunetv2_unimrseg.trainers.modality_dropout.draw_subsets", lambda *_: SUBSETS[0])

    def norm(factor: float) -> float:
        inner = made.loss
        monkeypatch.setattr(made, "loss", lambda *arguments: factor * inner(*arguments))
        made.train_step(batch())
        return float(torch.stack([p.grad.norm() for p in made.network.parameters() if p.grad is not None]).norm())

    assert 0 < norm(1e-3) < 1
    assert norm(1e8) == pytest.approx(12, rel=1e-3)


def test_stage_1_reconstructs_known_channels_only():
    made = make(UniMRSegStage1Trainer)
    _, prediction, target, known = made._reconstruct(batch()["data"])
    assert known.tolist() == [[True] * 4, [True, True, False, True]]
    (gradient,) = torch.autograd.grad(made.loss(prediction, target, known=known), prediction)
    assert gradient.flatten(2).any(2).tolist() == known.tolist()


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("trainer", SEGMENTING)
def test_ignored_voxels_are_not_supervised(trainer, labels):
    without = {
        UniMRSegStage2Trainer: {"contrastive_weight": 0.0},
        UniMRSegStage3Trainer: {"feature_weight": 0.0, "prediction_weight": 0.0},
        UniMRSegRetrofitTrainer: {"feature_weight": 0.0, "prediction_weight": 0.0},
        UniMRSegModalityDropoutTrainer: {},
    }
    made = make(trainer, labels, **without[trainer])
    ignored = batch(labels, ignored=True)
    made.compute_loss(ignored["data"], ignored["target"], ignored).backward()
    gradients = [p.grad.abs().sum() for p in made.network.parameters() if p.grad is not None]
    assert float(sum(gradients)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("trainer", [UniMRSegStage2Trainer, UniMRSegStage3Trainer])
def test_losses_without_labels_use_ignored_voxels(trainer):
    made = make(trainer)
    made._samples_of_pairs = lambda _: slice(None)
    ignored = batch(ignored=True)
    for adapter in made.network.adapters or []:
        adapter.project.reset_parameters()
    made.compute_loss(ignored["data"], ignored["target"], ignored).backward()
    assert sum(p.grad.abs().sum() for p in made.network.parameters() if p.grad is not None) > 0


def test_stage_3_begins_where_stage_2_ended():
    stage_2, stage_3 = make(UniMRSegStage2Trainer), make(UniMRSegStage3Trainer)
    missing, unexpected = stage_3.network.load_state_dict(stage_2.network.state_dict(), strict=False)
    assert not unexpected
    assert parts(set(missing)) == {"adapters"}
    data = batch()["data"]
    for network in (stage_2.network.eval(), stage_3.network.eval()):
        network.decoder.deep_supervision = False
    with torch.no_grad():
        assert torch.equal(stage_2.network(data), stage_3.network(data))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("trainer", SEGMENTING)
def test_validation_reports_complete_and_incomplete_input(trainer, labels):
    made = make(trainer, labels)
    made.network.eval()
    made.on_validation_epoch_start()
    given = batch(labels)
    original = copy.deepcopy(given)
    with torch.no_grad():
        outputs = [made.validation_step(given), made.validation_step(batch(labels))]
    assert torch.equal(given["data"].nan_to_num(9), original["data"].nan_to_num(9))
    with torch.no_grad():
        made.on_validation_epoch_end(outputs)
    made.on_validation_epoch_start()
    subsets = made.validation_deck.deal(2)
    with torch.no_grad():
        views = [made.network(view) for view in (original["data"], mark_missing(original["data"], subsets))]
    expected = sum(float(made.loss(logits, original["target"])) for logits in views) / 2
    assert float(outputs[0]["loss"]) == pytest.approx(expected, rel=1e-5)
    values = {key: made.logger.get_value(key, step=0) for key in ("dice_complete", "dice_incomplete", "mean_fg_dice")}
    assert all(0 <= value <= 1 for value in values.values())
    assert values["mean_fg_dice"] == pytest.approx((values["dice_complete"] + values["dice_incomplete"]) / 2, abs=1e-5)
    assert len(made.logger.get_value("dice_per_class_or_region", step=0)) == 2


def test_validation_counts_no_ignored_voxel():
    made = make(UniMRSegStage2Trainer)
    made.network.eval()
    made.on_validation_epoch_start()
    with torch.no_grad():
        outputs = made.validation_step(batch(ignored=True))
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        assert not outputs[name].any()
        assert not outputs[f"incomplete_{name}"].any()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_epoch_validates_the_same_subsets(trainer):
    made = make(trainer)
    made.network.eval()
    results = []
    for _ in range(2):
        made.on_validation_epoch_start()
        with torch.no_grad():
            results.append([float(made.validation_step(batch())["loss"]) for _ in range(2)])
    assert results[0] == results[1]


def test_loaded_weights_are_noticed():
    made = make(UniMRSegStage2Trainer)
    assert not made.weights_were_loaded
    made.unwrapped_network.load_state_dict(made.unwrapped_network.state_dict())
    assert made.weights_were_loaded


def test_a_checkpoint_resumes_weights_and_optimizer(tmp_path):
    made = make(UniMRSegStage3Trainer)
    made.network.train()
    made.train_step(batch())
    path = str(tmp_path / "checkpoint_latest.pth")
    made.save_checkpoint(path)
    resumed = make(UniMRSegStage3Trainer)
    resumed.load_checkpoint(path)
    assert not changed(weights(made.network), weights(resumed.network))
    assert resumed.weights_were_loaded
    ours, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (resumed, made))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key]["momentum_buffer"], theirs[key]["momentum_buffer"]) for key in theirs)
    assert not resumed.network.encoder.training
    assert not any(parameter.requires_grad for parameter in resumed.network.encoder.parameters())


def test_unset_results_are_one_error(monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(UserError, match="nnUNet_results is not set"):
        make(UniMRSegStage2Trainer)
