"""Training steps with samples that have no label, and with cases that lack modalities."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from networks import images, trained_network
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from training_steps import labels, segmentation_loss, stub

from nnunetv2_unimrseg.config import RetrofitConfig, Stage2Config, Stage3Config
from nnunetv2_unimrseg.data.case_table import TrainingCase
from nnunetv2_unimrseg.method.losses import feature_consistency, loss_of_labelled, prediction_consistency
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.trainers.retrofit import UniMRSegRetrofitTrainer
from nnunetv2_unimrseg.trainers.segmentation import mark_missing
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

ALL = tuple("abcd")
TABLE = {
    "labelled": TrainingCase(ALL, labelled=True),
    "unlabelled": TrainingCase(ALL, labelled=False),
    "other": TrainingCase(ALL, labelled=False),
    "without_c": TrainingCase(("a", "b", "d"), labelled=True),
}
SUBSETS = [
    torch.tensor([[True, False, False, True], [False, True, False, True]]),
    torch.tensor([[False, True, True, True], [True, False, False, False]]),
]
STEPS = {
    "stage 2, one view": (UniMRSegStage2Trainer, Stage2Config(pairs_every=2, teacher_weight=0.0)),
    "stage 2, pair": (
        UniMRSegStage2Trainer,
        Stage2Config(pairs_every=1, second_view="network", contrastive_weight=0.0, teacher_weight=0.0),
    ),
    "stage 2, average": (
        UniMRSegStage2Trainer,
        Stage2Config(pairs_every=1, contrastive_weight=0.0, teacher_weight=0.0),
    ),
    "stage 3, one view": (UniMRSegStage3Trainer, Stage3Config(pairs_every=2)),
    "stage 3, pair": (UniMRSegStage3Trainer, Stage3Config(feature_weight=0.0, prediction_weight=0.0)),
    "retrofit": (UniMRSegRetrofitTrainer, RetrofitConfig(feature_weight=0.0, prediction_weight=0.0)),
}


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_the_loss_of_some_samples_is_that_of_a_batch_of_them(kind, ignored, batch_dice):
    loss = DeepSupervisionWrapper(segmentation_loss(kind, batch_dice=batch_dice), (1.0, 0.5))
    target = torch.cat((labels(kind), labels(kind)))
    if ignored:
        target[3, -1, :8] = 3 if kind == "classes" else True
    target = [target, target[..., ::2, ::2, ::2]]
    logits = [torch.randn(4, 3, *scale.shape[2:], requires_grad=True) for scale in target]
    chosen = torch.tensor([1, 3])
    loss_of_labelled(loss, logits, target, chosen).backward()
    alone = [scale.detach()[chosen].requires_grad_() for scale in logits]
    loss(alone, [scale[chosen] for scale in target]).backward()
    for scale, one in zip(logits, alone, strict=True):
        assert torch.equal(scale.grad[chosen], one.grad)
        assert not scale.grad[[0, 2]].any()


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_the_loss_of_no_sample_is_zero_with_gradients_of_zero(deep_supervision):
    scales = [torch.full((2, 3, edge, edge), math.inf, requires_grad=True) for edge in (8, 4)]
    target = [torch.zeros(2, 1, edge, edge) for edge in (8, 4)]
    given = (scales, target) if deep_supervision else (scales[0], target[0])
    value = loss_of_labelled(segmentation_loss("classes"), *given, torch.tensor([], dtype=torch.long))
    value.backward()
    assert value == 0
    assert all(
        torch.equal(scale.grad, torch.zeros_like(scale)) for scale in (scales if deep_supervision else scales[:1])
    )


def make(
    step: str, kind: str = "classes", *, batch_dice: bool = False, **settings: object
) -> tuple[SimpleNamespace, MissingModalityUNet]:
    trainer, config = STEPS[step]
    network = trained_network(trainer.section)
    made = stub(trainer, network, kind, type(config)(**{**vars(config), **settings}), TABLE)
    made.loss = DeepSupervisionWrapper(segmentation_loss(kind, batch_dice=batch_dice), (1.0, 0.5))
    made._draw_one_view = lambda count: SUBSETS[0][:count]
    made._draw_second_view = lambda first: SUBSETS[1][: len(first)]
    made._draw_views = made._deal_subsets = lambda count: [subset[:count] for subset in SUBSETS]
    made.deck = SimpleNamespace(deal=lambda count: SUBSETS[1][:count])
    return made, network


def gradients(
    made: SimpleNamespace, network: MissingModalityUNet, data: torch.Tensor, target: torch.Tensor, keys: list[str]
) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    loss = made.compute_loss(data, [target, target[..., ::2, ::2, ::2]], {"keys": keys})
    made.backward(loss)
    assert torch.isfinite(loss)
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("kind", ["classes", "regions"])
@pytest.mark.parametrize("step", STEPS)
def test_an_unlabelled_sample_changes_no_supervised_gradient(step, kind, batch_dice):
    data, target = images(), labels(kind)
    together = gradients(*make(step, kind, batch_dice=batch_dice), data, target, ["labelled", "unlabelled"])
    alone = gradients(*make(step, kind, batch_dice=batch_dice), data[:1], target[:1], ["labelled"])
    assert together.keys() == alone.keys()
    assert any(gradient.any() for gradient in alone.values())
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("step", STEPS)
def test_a_batch_without_labels_gives_a_gradient_of_zero_to_all_that_learns(step):
    made, network = make(step)
    found = gradients(made, network, images(), labels("classes"), ["unlabelled", "other"])
    assert found.keys() == {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())


WITHOUT_LABELS = {
    "stage 2, pair": {"contrastive_weight": 1.0},
    "stage 2, average": {"contrastive_weight": 1.0},
    "stage 2, one view": {"teacher_weight": 1.0},
    "stage 3, pair": {"feature_weight": 1.0, "prediction_weight": 1.0},
    "retrofit": {"feature_weight": 1.0, "prediction_weight": 1.0},
}


@pytest.mark.parametrize("step", WITHOUT_LABELS)
def test_an_unlabelled_sample_teaches_without_its_stored_label(step):
    target = labels("classes")
    relabelled = torch.stack((target[0], 2 - target[1]))
    views = [(images(), target), (images(), relabelled)]
    found = [gradients(*make(step, **WITHOUT_LABELS[step]), *view, ["labelled", "unlabelled"]) for view in views]
    supervised = gradients(*make(step), images(), target, ["labelled", "unlabelled"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any((found[0][name] - gradient).abs().max() > 1e-6 for name, gradient in supervised.items())


@pytest.mark.parametrize("label_weight", [0.0, 0.3])
def test_a_student_that_sees_all_its_teacher_saw_learns_from_labels_only(label_weight):
    weights = {"feature_weight": 0.5, "prediction_weight": 2.0, "incomplete_label_weight": label_weight}
    made, network = make("stage 3, pair", **weights)
    data, target = images(), [labels("classes"), labels("classes")[..., ::2, ::2, ::2]]
    data[1, 2] = math.nan
    subsets = [  # of the case without c: all that it has, c alone, and two modalities that it has
        torch.tensor([[True, False, False, True], [True, True, False, True]]),
        torch.tensor([[False, True, True, True], [False, False, True, False]]),
        torch.tensor([[True, True, False, False], [True, True, True, False]]),
    ]
    made._deal_subsets = lambda _: subsets
    teacher, teacher_features = network(data, skip_adapters=True, return_features=True)
    expected = made.loss(teacher, target) / (1 + label_weight)
    for subset, taught in zip(subsets, (1, 1, 2), strict=True):
        logits, features = network(data, subset, return_features=True)
        alike = feature_consistency([f[:taught] for f in features], [f[:taught] for f in teacher_features])
        distance = prediction_consistency(logits[0][:taught], teacher[0][:taught], regions=False)
        consistency = taught / 2 * (0.5 * alike + 2.0 * distance)
        expected = expected + (consistency + label_weight / (1 + label_weight) * made.loss(logits, target)) / 3
    loss = made.compute_loss(data, target, {"keys": ["labelled", "without_c"]})
    torch.testing.assert_close(loss, expected)


def test_a_step_in_which_no_student_is_taught_gives_finite_gradients():
    made, network = make("stage 3, pair", incomplete_label_weight=0.0, feature_weight=1.0)
    made._deal_subsets = lambda _: [torch.tensor([[False, False, True, False], [True, True, False, True]])]
    data = images()
    data[:, 2] = math.nan
    found = gradients(made, network, data, labels("classes"), ["without_c", "without_c"])
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert not any(gradient.any() for name, gradient in found.items() if name.startswith("adapters."))


def test_a_case_keeps_its_own_modalities_where_a_subset_would_leave_none():
    data = images()
    data[0, 1] = math.nan
    marked = mark_missing(data, torch.tensor([[False, True, False, False]] * 2))
    assert torch.isnan(marked).flatten(2).all(2).tolist() == [[False, True, False, False], [True, False, True, True]]
