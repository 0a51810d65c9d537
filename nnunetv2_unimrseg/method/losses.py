"""The losses of the three stages. Half-precision inputs are computed in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_unimrseg.utils.hardware import without_autocast

SSIM_K1, SSIM_K2 = 0.01, 0.03
CONSTANT_RANGE = 1e-3
"""A target whose range is smaller (normalised units) is constant but for the noise of resampling."""


class Float32Loss(nn.Module):
    """Computes another segmentation loss in float32, outside autocast.

    Autocast on a CPU leaves softmax and the sums of Dice in bfloat16, whose 8 bits cannot tell a small lesion from
    none; on CUDA it takes float32 for them by itself.

    Args:
        loss: nnU-Net's loss, of logits (a list under deep supervision) and target.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        """Return the loss, a scalar."""
        in_float32 = logits.float() if isinstance(logits, Tensor) else [scale.float() for scale in logits]
        device = in_float32.device if isinstance(in_float32, Tensor) else in_float32[0].device
        with without_autocast(device):
            loss: Tensor = self.loss(in_float32, target)
        return loss


def loss_of_labelled(
    loss: nn.Module, logits: Tensor | list[Tensor], target: Tensor | list[Tensor], labelled: Tensor
) -> Tensor:
    """Return a segmentation loss of some samples of a batch: its gradient is that of a batch of these samples alone.

    Masking the others' voxels would not do: the mean over samples, and the Dice term's constant of an empty sample,
    would still count them.

    Args:
        loss: nnU-Net's loss.
        logits: `(B, K, X, Y[, Z])`, or a list of resolutions.
        target: labels of the same form.
        labelled: `(L,)` indices of these samples. Where there are none the loss is 0, and all logits have gradients
            of 0 (for which distributed training waits).
    """
    if len(labelled) == 0:
        scales = [logits] if isinstance(logits, Tensor) else logits
        return torch.stack([scale[:0].float().sum() for scale in scales]).sum()

    def pick(batch: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        return batch[labelled] if isinstance(batch, Tensor) else [scale[labelled] for scale in batch]

    value: Tensor = loss(pick(logits), pick(target))
    return value


def ssim(prediction: Tensor, target: Tensor, window: int = 7) -> Tensor:
    """Structural similarity of each sample and channel.

        SSIM = mean over windows of (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2))

    with uniform windows that lie inside the image, c1 = (0.01 R)^2, c2 = (0.03 R)^2, and R the range (maximum minus
    minimum) of the target's sample and channel (1 where the target is constant, see `CONSTANT_RANGE`).

    Args:
        prediction: `(B, C, X, Y[, Z])`.
        target: the same shape.
        window: edge of a window in voxels, odd; the largest odd size that fits is used along shorter axes.

    Returns:
        `(B, C)`, from -1 to 1, 1 at equality. Source: Wang et al. 2004; window as in scikit-image.
    """
    prediction, target = prediction.float(), target.float()
    spatial = tuple(range(2, target.ndim))
    spread = target.amax(spatial, keepdim=True) - target.amin(spatial, keepdim=True)
    spread = torch.where(spread > CONSTANT_RANGE, spread, 1.0)
    # a mean far above the range would drown the variances in rounding, so they are taken about the target's mean
    centre = target.mean(spatial, keepdim=True)
    x, y = (prediction - centre) / spread, (target - centre) / spread
    mean_x, squares, product = _box_filter(torch.cat((x, x * x + y * y, x * y), 1), window).chunk(3, 1)
    mean_y = _box_filter(y, window)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    variances = (squares - mean_x**2 - mean_y**2).clamp(min=0)
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + centre / spread, mean_y + centre / spread
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similarity.mean(spatial)


def _box_filter(x: Tensor, window: int) -> Tensor:
    """Mean over windows, one axis after another: on a CPU sums of shifted images are much faster than pooling."""
    filter_axis = _pool_axis if x.device.type == "cuda" else _add_shifted
    for axis in range(2, x.ndim):
        fitting = min(window, x.shape[axis])
        x = filter_axis(x, axis, fitting - (fitting % 2 == 0))
    return x


def _add_shifted(x: Tensor, axis: int, window: int) -> Tensor:
    length = x.shape[axis] - window + 1
    total: Any = sum(x.narrow(axis, shift, length) for shift in range(window))  # sum's type allows for no summand
    mean: Tensor = total / window
    return mean


def _pool_axis(x: Tensor, axis: int, window: int) -> Tensor:
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[x.ndim - 2]
    return pool(x, [window if axis == one else 1 for one in range(2, x.ndim)], stride=1)


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    l1_weight: float = 1.0,
    ssim_weight: float = 1.0,
    window: int = 7,
    known: Tensor | None = None,
) -> Tensor:
    """Stage 1's loss, l1_weight * mean |prediction - target| + ssim_weight * (1 - mean SSIM) (paper section 3.1).

    Args:
        prediction: `(B, C, X, Y[, Z])`, normalised intensities.
        target: the complete patch, the same shape.
        l1_weight, ssim_weight: see the formula.
        window: SSIM's window in voxels.
        known: `(B, C)` booleans of the target's channels that exist; the others do not count.

    Returns:
        A scalar, at least 0, 0 at equality.
    """
    prediction, target = prediction.float(), target.float()
    if known is None:
        known = target.new_ones(target.shape[:2], dtype=torch.bool)
    absolute = (prediction - target).abs().flatten(2).mean(2)
    per_channel = l1_weight * absolute + ssim_weight * (1 - ssim(prediction, target, window))
    return torch.where(known, per_channel, 0.0).sum() / known.sum().clamp(min=1)


def feature_consistency(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over encoder stages of the mean absolute difference of features (paper section 3.3).

    Args:
        student: features of an incomplete view, one `(B, F, X, Y[, Z])` a stage; gradients flow.
        teacher: the complete view's; detached.
    """
    terms = [F.l1_loss(ours.float(), theirs.detach().float()) for ours, theirs in zip(student, teacher, strict=True)]
    return torch.stack(terms).mean()


def certainty(teacher: Tensor, *, regions: bool) -> Tensor:
    """Return 1 - entropy / its largest value for each voxel: `(B, K, X, Y[, Z])` logits to `(B, X, Y[, Z])`.

    It is 1 where the probabilities are 0 and 1, and 0 where all are equal; the mean over regions where these are K.
    """
    teacher = teacher.detach().float()
    if regions:
        entropy = F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid(), reduction="none").mean(1)
        return 1 - entropy / math.log(2)
    log_q = F.log_softmax(teacher, 1)
    return 1 + (log_q.exp() * log_q).sum(1) / math.log(teacher.shape[1])


def prediction_consistency(student: Tensor, teacher: Tensor, *, regions: bool, weight: Tensor | None = None) -> Tensor:
    """Distance of predicted probabilities p to the teacher's q: Kullback-Leibler divergence plus a soft Dice term.

        mean over voxels of w KL(q || p)  +  mean over classes of 1 - 2 sum(w p q) / (sum(w p^2) + sum(w q^2))

    Both terms are at least 0 and 0 only at p = q (soft Dice without the squares is not minimal there). Softmax
    classes leave the background out of the Dice term; regions are independent sigmoids, each with its own KL.

    Args:
        student: logits `(B, K, X, Y[, Z])` of an incomplete view; gradients flow.
        teacher: logits of the complete view, the same shape; detached.
        regions: whether the K heads are overlapping regions (sigmoid) instead of classes (softmax).
        weight: w, `(B, X, Y[, Z])` from 0 to 1; 1 by default.
    """
    student, teacher = student.float(), teacher.detach().float()
    spatial = tuple(range(2, student.ndim))
    if regions:
        p, q = torch.sigmoid(student), torch.sigmoid(teacher)
        divergence = q * (F.logsigmoid(teacher) - F.logsigmoid(student))
        divergence = divergence + (1 - q) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    else:
        log_p, log_q = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
        p, q = log_p.exp(), log_q.exp()
        divergence = (q * (log_q - log_p)).sum(1)
        p, q = p[:, 1:], q[:, 1:]
    if weight is not None:
        weight = weight.unsqueeze(1)
        divergence = divergence * (weight if regions else weight[:, 0])
        p, q = p * weight.sqrt(), q * weight.sqrt()
    overlap, squares = (p * q).sum(spatial), (p * p + q * q).sum(spatial)
    dice_term = 1 - (2 * overlap + 1e-5) / (squares + 1e-5)
    return divergence.mean() + dice_term.mean()
