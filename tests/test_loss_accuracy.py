"""What the losses must withstand: flat background, large offsets, nothing known; and the formulas in float64."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity

from nnunetv2_unimrseg.method.losses import (
    prediction_consistency,
    reconstruction_loss,
    ssim,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("base", "spread"), [(-3.0, 0.01), (100.0, 0.5), (-1000.0, 2000.0)])
@pytest.mark.parametrize("noise", [0.1, 10.0])
def test_ssim_is_accurate_where_the_mean_is_far_above_the_range(base, spread, noise):
    target = base + spread * torch.rand(1, 1, 12, 12, 12)
    prediction = target + noise * spread * torch.randn_like(target)
    x, y = prediction[0, 0].double().numpy(), target[0, 0].double().numpy()
    expected = structural_similarity(x, y, win_size=7, data_range=y.max() - y.min(), use_sample_covariance=False)
    assert ssim(prediction, target).item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("base", [0.0, -3.0])
@pytest.mark.parametrize("spread", [0.0, 1e-10, 1e-6, 1e-4])
@pytest.mark.parametrize("error", [1e-3, 0.1, 1.0])
def test_background_with_the_noise_of_resampling_is_harmless(base, spread, error):
    target = base + spread * torch.rand(1, 1, 12, 12, 12)
    for prediction in (base + error * torch.randn_like(target), torch.full_like(target, base + error)):
        prediction.requires_grad_()
        similarity = ssim(prediction, target)
        similarity.sum().backward()
        assert -1 <= similarity.item() <= 1 + 1e-5
        assert prediction.grad.norm() < 1
    assert ssim(target, target).item() == pytest.approx(1, abs=1e-5)


def test_a_flat_reconstruction_is_never_worse_than_unrelated():
    target = 2e-3 * torch.rand(400, 1, 7, 8, 8) - 3
    offsets = torch.linspace(0.05, 3, 400).view(-1, 1, 1, 1, 1)
    assert ssim(offsets.expand_as(target) - 3, target).min() > -1e-3


def test_reconstruction_loss_without_any_known_channel_is_zero():
    target, prediction = torch.zeros(1, 2, 8, 8), torch.randn(1, 2, 8, 8, requires_grad=True)
    loss = reconstruction_loss(prediction, target, known=torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


@pytest.mark.parametrize("regions", [False, True])
def test_prediction_consistency_against_the_formula(regions):
    student, teacher = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    if regions:
        p, q = student.sigmoid(), teacher.sigmoid()
        divergence = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean().item()
    else:
        p, q = student.exp() / student.exp().sum(1, True), teacher.exp() / teacher.exp().sum(1, True)
        divergence = (q * (q / p).log()).sum(1).mean().item()
    classes = range(3) if regions else (1, 2)
    dice = [
        1 - 2 * (p[b, k] * q[b, k]).sum() / (p[b, k].square().sum() + q[b, k].square().sum())
        for b in range(2)
        for k in classes
    ]
    expected = divergence + float(sum(dice)) / len(dice)
    assert prediction_consistency(student, teacher, regions=regions).item() == pytest.approx(expected, abs=1e-4)
