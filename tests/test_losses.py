"""The losses against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nnunetv2_unimrseg.method import losses
from nnunetv2_unimrseg.method.contrast import nt_xent
from nnunetv2_unimrseg.method.losses import (
    Float32Loss,
    feature_consistency,
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
