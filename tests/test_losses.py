"""The losses against independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nnunetv2_unimrseg.method import losses
from nnunetv2_unimrseg.method.losses import (
    Float32Loss,
    NegativesMemory,
    feature_consistency,
    multi_stage_nt_xent,
    nt_xent,
    prediction_consistency,
    reconstruction_loss,
    ssim,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=["_add_shifted", "_pool_axis"])
def window_means(request, monkeypatch):
    """SSIM's windows as they are averaged on a CPU, and on a GPU."""
    monkeypatch.setattr(losses, "_add_shifted", getattr(losses, request.param))


@pytest.mark.parametrize("size", [(14, 15, 16), (20, 22), (7, 9, 8), (9,)])
@pytest.mark.usefixtures("window_means")
def test_ssim_against_scikit_image(size):
    target = torch.randn(2, 3, *size)
    prediction = target + 0.3 * torch.randn_like(target)
    ours = ssim(prediction, target)
    for sample in range(2):
        for channel in range(3):
            x, y = (image[sample, channel].double().numpy() for image in (prediction, target))
            expected = structural_similarity(
                x, y, win_size=7, data_range=y.max() - y.min(), use_sample_covariance=False
            )
            assert ours[sample, channel].item() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_short_axes_constant_targets_and_equality():
    flat = torch.randn(1, 1, 4, 20, 20)
    assert ssim(flat, flat).item() == pytest.approx(1, abs=1e-5)
    constant = torch.full((1, 1, 8, 8, 8), 3.0)
    assert torch.isfinite(ssim(torch.randn(1, 1, 8, 8, 8), constant)).all()


@pytest.mark.parametrize("size", [(14, 15, 16), (20, 22), (4, 12, 13), (1, 9, 2)])
@pytest.mark.usefixtures("window_means")
def test_ssim_against_monai_also_along_short_axes(size):
    """MONAI's windows are set by axis: 3 along an axis of 4 voxels, 1 along axes of 1 and 2."""
    regression = pytest.importorskip("monai.metrics.regression")
    windows = [min(7, extent - (extent % 2 == 0)) for extent in size]
    target = torch.randn(2, 3, *size)
    prediction = target + 0.5 * torch.randn_like(target)
    for sample in range(2):
        for channel in range(3):
            x, y = (image[sample, channel][None, None] for image in (prediction, target))
            expected, _ = regression.compute_ssim_and_cs(
                x, y, len(size), windows, windows, float(y.max() - y.min()), "uniform"
            )
            assert ssim(prediction, target)[sample, channel].item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_ssim_of_a_constant_target_has_a_range_of_one():
    x, y = torch.rand(1, 1, 7, 7), torch.full((1, 1, 7, 7), 0.4)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * 0.4 * x.mean() + c1) / (0.4**2 + x.mean() ** 2 + c1)
    contrast = c2 / (x.var(correction=0) + c2)
    assert ssim(x, y).item() == pytest.approx((luminance * contrast).item(), abs=1e-5)


def test_ssim_does_not_depend_on_the_intensity_scale():
    target = torch.randn(1, 2, 12, 12, 12)
    prediction = target + torch.randn_like(target)
    scale = torch.tensor([3.0, 50.0]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(ssim(prediction * scale, target * scale), ssim(prediction, target))


def test_reconstruction_loss_is_l1_plus_one_minus_ssim_of_known_channels():
    target, prediction = torch.randn(2, 2, 10, 10, 10), torch.randn(2, 2, 10, 10, 10)
    known = torch.tensor([[True, False], [True, True]])
    expected = []
    for sample, channel in ((0, 0), (1, 0), (1, 1)):
        x, y = prediction[sample, channel], target[sample, channel]
        similarity = structural_similarity(
            x.double().numpy(), y.double().numpy(), win_size=7, data_range=float(y.max() - y.min()),
            use_sample_covariance=False,
        )  # fmt: skip
        expected.append(2 * (x - y).abs().mean().item() + 0.5 * (1 - similarity))
    loss = reconstruction_loss(prediction, target, l1_weight=2, ssim_weight=0.5, known=known)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)
    assert reconstruction_loss(target, target).item() == pytest.approx(0, abs=1e-5)


def double_loop(
    first: torch.Tensor,
    second: torch.Tensor,
    patients: list[int],
    temperature: float,
    past: torch.Tensor | tuple = (),
    past_patients: tuple[int, ...] = (),
) -> float:
    views = [*first.double(), *second.double(), *(feature.double() for feature in past)]
    owners = [*patients * 2, *past_patients]
    count = len(patients)

    def similarity(a: int, b: int) -> float:
        return float(views[a] @ views[b] / views[a].norm() / views[b].norm()) / temperature

    losses = []
    for anchor in range(2 * count):
        positive = (anchor + count) % (2 * count)
        denominator = math.exp(similarity(anchor, positive))
        for other in range(len(views)):
            if owners[other] != owners[anchor]:
                denominator += math.exp(similarity(anchor, other))
        losses.append(-similarity(anchor, positive) + math.log(denominator))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("patients", [[0], [0, 1], [0, 0, 1], [3, 1, 3, 2, 1], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_against_a_double_loop(patients, temperature):
    first, second = torch.randn(len(patients), 6), torch.randn(len(patients), 6)
    ours = nt_xent(first, second, torch.tensor(patients), temperature)
    assert ours.item() == pytest.approx(double_loop(first, second, patients, temperature), abs=1e-5)


def test_nt_xent_without_negatives_is_zero_with_finite_gradients():
    first, second = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    loss = nt_xent(first, second, torch.tensor([7, 7, 7]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_nt_xent_has_gradients_into_both_views():
    first, second = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    nt_xent(first, second, torch.arange(3)).backward()
    assert (first.grad.abs().sum(1) > 0).all()
    assert (second.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("patients", [[0], [0, 1], [0, 0, 1], [3, 1, 3, 2, 1]])
@pytest.mark.parametrize("past_patients", [(0,), (4,), (0, 1, 1, 5, 3, 5), (7, 8, 9, 7)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_with_past_negatives_against_a_double_loop(patients, past_patients, temperature):
    first, second, past = (torch.randn(count, 6) for count in (len(patients), len(patients), len(past_patients)))
    ours = nt_xent(first, second, torch.tensor(patients), temperature, (past, torch.tensor(past_patients)))
    expected = double_loop(first, second, patients, temperature, past, past_patients)
    assert ours.item() == pytest.approx(expected, abs=1e-5)


def test_past_features_are_negatives_of_other_patients_alone_and_get_no_gradient():
    first, second = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    past = torch.randn(3, 4, requires_grad=True)
    one_patient = torch.tensor([5])
    alone = nt_xent(first, second, one_patient, past=(past, torch.tensor([5, 5, 5])))
    alone.backward()
    assert alone.item() == 0
    assert not first.grad.any() and not second.grad.any()
    mixed = nt_xent(first, second, one_patient, past=(past, torch.tensor([5, 2, 5])))
    mixed.backward()
    torch.testing.assert_close(mixed, nt_xent(first, second, one_patient, 0.5, (past[1:2], torch.tensor([2]))))
    assert mixed > 0
    assert first.grad.any() and second.grad.any()
    assert past.grad is None


def test_the_memory_is_first_in_first_out_with_the_patients_of_its_features():
    memory = NegativesMemory(5)
    steps = [(1.0, 2.0, 10), (3.0, 4.0, 11), (5.0, 6.0, 12)]
    kept = []
    for first, second, patient in steps:
        widths = (2, 3)
        memory.add(
            [torch.full((1, width), first) for width in widths],
            [torch.full((1, width), second) for width in widths],
            torch.tensor([patient]),
        )
        kept = [*kept, (first, patient), (second, patient)][-5:]
        assert [tuple(stage.shape) for stage in memory.features] == [(len(kept), width) for width in widths]
        for stage in memory.features:
            assert stage[:, 0].tolist() == stage[:, -1].tolist() == [value for value, _ in kept]
        assert memory.patients.tolist() == [patient for _, patient in kept]
    assert [value for value, _ in kept] == [2, 3, 4, 5, 6]


def test_a_batch_larger_than_the_memory_leaves_its_last_features():
    memory = NegativesMemory(3)
    first, second = torch.arange(4.0)[:, None], torch.arange(4.0, 8.0)[:, None]
    memory.add([first], [second], torch.tensor([0, 1, 2, 3]))
    assert memory.features[0][:, 0].tolist() == [5, 6, 7]
    assert memory.patients.tolist() == [1, 2, 3]


def test_the_memory_keeps_detached_copies():
    memory = NegativesMemory(8)
    first, second = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    memory.add([2 * first], [second], torch.tensor([0, 1]))
    assert not memory.features[0].requires_grad
    with torch.no_grad():
        second.fill_(9)
    assert memory.features[0].tolist() == [[2.0] * 3] * 2 + [[1.0] * 3] * 2


@pytest.mark.parametrize("size", [0, 4])
def test_contrast_over_stages_with_a_memory(size):
    memory, stages = NegativesMemory(size), [3, 5]
    patients, past_patients = torch.tensor([0, 1]), torch.tensor([1, 2])
    past_views = [[torch.randn(2, width) for width in stages] for _ in range(2)]
    memory.add(*past_views, past_patients)
    first, second = ([torch.randn(2, width) for width in stages] for _ in range(2))
    terms = []
    for stage in range(2):
        past = torch.cat([view[stage] for view in past_views]) if size else ()
        terms.append(double_loop(first[stage], second[stage], [0, 1], 0.3, past, (1, 2, 1, 2) if size else ()))
    ours = multi_stage_nt_xent(first, second, patients, 0.3, memory)
    assert ours.item() == pytest.approx(sum(terms) / 2, abs=1e-5)
    without = multi_stage_nt_xent(first, second, patients, 0.3)
    assert (ours.item() == without.item()) == (size == 0)
    assert len(memory.patients) == size
    assert [len(stage) for stage in memory.features] == ([size] * 2 if size else [])


@pytest.mark.parametrize("regions", [False, True])
def test_prediction_consistency_is_minimal_at_equality(regions):
    teacher = torch.randn(2, 3, 4, 4, 4)
    student = teacher.clone().requires_grad_()
    loss = prediction_consistency(student, teacher, regions=regions)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-6)
    for step in (1e-2, 1.0, -0.5):
        assert prediction_consistency(teacher + step * torch.randn_like(teacher), teacher, regions=regions) > 0


@pytest.mark.parametrize("regions", [False, True])
def test_prediction_consistency_against_plain_formulas(regions):
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    p, q = (x.double().sigmoid() if regions else x.double().softmax(1) for x in (student, teacher))
    divergence = q * (q / p).log()
    divergence = divergence + (1 - q) * ((1 - q) / (1 - p)).log() if regions else divergence.sum(1)
    dice = []
    for sample in range(2):
        for head in range(0 if regions else 1, 3):
            one, other = p[sample, head], q[sample, head]
            dice.append(1 - 2 * (one * other).sum() / ((one**2).sum() + (other**2).sum()))
    expected = divergence.mean() + torch.stack(dice).mean()
    assert prediction_consistency(student, teacher, regions=regions).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_following_its_gradient_leads_to_the_teacher(regions):
    teacher = torch.randn(1, 3, 3, 3, 3)
    student = torch.randn_like(teacher).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        prediction_consistency(student, teacher, regions=regions).backward()
        optimizer.step()
    probabilities = torch.sigmoid if regions else (lambda logits: logits.softmax(1))
    torch.testing.assert_close(probabilities(student), probabilities(teacher), atol=0.02, rtol=0)


def test_plain_soft_dice_is_not_minimal_at_equality():
    teacher = torch.full((10,), 0.7)

    def plain(student: torch.Tensor) -> torch.Tensor:
        return 1 - 2 * (student * teacher).sum() / (student.sum() + teacher.sum())

    assert plain(torch.ones(10)) < plain(teacher)


def test_the_teacher_gets_no_gradient():
    teacher, student = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = prediction_consistency(student, teacher, regions=False) + feature_consistency([student], [teacher])
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_feature_consistency_is_the_mean_over_stages():
    student, teacher = (
        [torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 2, 2)],
        [torch.ones(1, 2, 4, 4), torch.zeros(1, 4, 2, 2)],
    )
    assert feature_consistency(student, teacher).item() == pytest.approx(0.5)


def central_difference(function, at: torch.Tensor, direction: torch.Tensor, step: float = 1e-2) -> float:
    return ((function(at + step * direction) - function(at - step * direction)) / (2 * step)).item()


LOSSES = {
    "reconstruction": lambda student, teacher: reconstruction_loss(student, teacher),
    "nt_xent": lambda student, teacher: nt_xent(student.flatten(1), teacher.flatten(1), torch.arange(len(student))),
    "features": lambda student, teacher: feature_consistency([student], [teacher]),
    "classes": lambda student, teacher: prediction_consistency(student, teacher, regions=False),
    "regions": lambda student, teacher: prediction_consistency(student, teacher, regions=True),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
def test_gradients_against_finite_differences(loss):
    teacher = torch.randn(2, 3, 8, 8)
    # far enough from equality that no |difference| has its kink within a step
    student = (teacher + torch.randn_like(teacher).sign() * (0.1 + torch.rand_like(teacher))).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    for _ in range(3):
        direction = torch.randn_like(teacher)
        expected = central_difference(lambda x: loss(x, teacher), student.detach(), direction)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=0.03, abs=3e-4)


@each_loss
def test_bfloat16_autocast_changes_no_loss(loss):
    student, teacher = torch.randn(2, 3, 8, 8, 8), torch.randn(2, 3, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(student, teacher)
    torch.testing.assert_close(inside, loss(student, teacher))


@each_loss
def test_half_precision_inputs_are_computed_in_float32(loss):
    student, teacher = torch.randn(2, 3, 8, 8).bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    assert loss(student, teacher).dtype == torch.float32
    torch.testing.assert_close(loss(student, teacher), loss(student.float(), teacher.float()))


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_supervised_loss_sees_float32_under_autocast(deep_supervision):
    seen = []

    class Product(torch.nn.Module):
        def forward(self, logits, target):
            scales = logits if deep_supervision else [logits]
            seen.extend(scale.dtype for scale in scales)
            return sum((scale @ target).sum() for scale in scales)

    logits, target = torch.randn(4, 4).bfloat16(), torch.randn(4, 4)
    given = [logits, logits[:2]] if deep_supervision else logits
    with torch.autocast("cpu", torch.bfloat16):
        loss = Float32Loss(Product())(given, target)
    assert set(seen) == {torch.float32}
    expected = (logits.float() @ target).sum() + ((logits[:2].float() @ target).sum() if deep_supervision else 0)
    torch.testing.assert_close(loss, expected)


def test_channels_without_a_target_give_no_gradient():
    prediction = torch.randn(1, 2, 8, 8, requires_grad=True)
    target = torch.randn(1, 2, 8, 8)
    target[:, 1] = 0
    reconstruction_loss(prediction, target, known=torch.tensor([[True, False]])).backward()
    assert prediction.grad[:, 0].any()
    assert not prediction.grad[:, 1].any()
    assert reconstruction_loss(prediction, target, known=torch.zeros(1, 2, dtype=torch.bool)).item() == 0
