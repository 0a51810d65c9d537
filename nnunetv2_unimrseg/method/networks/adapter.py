"""The reverse attention adapter of stage 3 and its window attention (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder

FUSED_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which torch prefers on Hopper GPUs: its backward pass fails for as many windows as a large patch has."""
MOST_WINDOWS = 2**16 - 1
"""The most windows that a CUDA kernel can take at once (the limit of its grid)."""
TOKENS_EDGE = {1: 64, 2: 8, 3: 4}
"""Default edge of a window by dimension: 64 tokens each."""


def partition_windows(x: Tensor, window: Sequence[int], heads: int) -> Tensor:
    """Cut `(B, heads * d, X, Y[, Z])` into windows: `(B * windows, heads, tokens, d)`; sizes must be multiples."""
    dims = len(window)
    batch, channels, *size = x.shape
    cut = [length for extent, edge in zip(size, window, strict=True) for length in (extent // edge, edge)]
    x = x.reshape(batch, heads, channels // heads, *cut)
    counts_first = [3 + 2 * axis for axis in range(dims)]
    x = x.permute(0, *counts_first, 1, *[axis + 1 for axis in counts_first], 2)
    return x.reshape(-1, heads, math.prod(window), channels // heads)


def merge_windows(x: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """Undo `partition_windows` for one head of one channel: `(B * windows, tokens)` to `(B, 1, X, Y[, Z])`."""
    dims = len(window)
    counts = [extent // edge for extent, edge in zip(size, window, strict=True)]
    x = x.reshape(-1, *counts, *window)
    interleaved = [axis for pair in range(dims) for axis in (1 + pair, 1 + dims + pair)]
    return x.permute(0, *interleaved).reshape(-1, 1, *size)


class WindowAttention(nn.Module):
    """Mutual attention inside windows, reduced to one value a voxel: mean over channels of softmax(QK^T / sqrt(d)) V.

    The mean over channels commutes with the attention-weighted sum, so each head projects to one mean value instead
    of d values: the same function, with less work. Queries and keys have half the channels.

    Args:
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`.
        channels: channels of the input.
        window: edge of a window in voxels; clipped to the input's size along short axes. Sizes that are no multiple
            are padded, and the padded voxels are masked out.
    """

    def __init__(self, conv_op: type[nn.Module], channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        inner = max(channels // 2, min(channels, 16))
        self.heads = next(heads for heads in range(max(1, inner // 32), 0, -1) if inner % heads == 0)
        self.inner = inner
        self.query_key = conv_op(channels, 2 * inner, 1)
        self.value = conv_op(channels, self.heads, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, X, Y[, Z])` to `(B, 1, X, Y[, Z])`."""
        size = x.shape[2:]
        window = [min(self.window, extent) for extent in size]
        margins = [-extent % edge for extent, edge in zip(size, window, strict=True)]
        padding = [amount for margin in reversed(margins) for amount in (0, margin)]
        projected = [*self.query_key(x).chunk(2, dim=1), self.value(x)]
        if any(margins):
            projected = [F.pad(part, padding) for part in projected]
        padded_size = projected[0].shape[2:]
        query, key, value = (partition_windows(part, window, self.heads) for part in projected)
        mask = None
        if any(margins):
            inside = F.pad(torch.ones((1, 1, *size), dtype=torch.bool, device=x.device), padding)
            mask = partition_windows(inside, window, 1)[..., 0].unsqueeze(-2)
            mask = mask.repeat(x.shape[0], 1, 1, 1)
        attended = _attend(query, key, value, mask)
        merged = merge_windows(attended.mean(1), window, padded_size)
        unpadded: tuple[EllipsisType | slice, ...] = (..., *(slice(extent) for extent in size))
        return merged[unpadded]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(QK^T / sqrt(d)) V for values of one channel: `(windows, heads, tokens)`.

    On a CPU an explicit matmul and softmax is several times faster than the fused kernel for windows this small.
    """
    attention = _fused_attention if query.device.type == "cuda" else _explicit_attention
    return attention(query, key, value, mask)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    value = F.pad(value, (0, query.shape[-1] - 1))
    parts = [part.split(MOST_WINDOWS) for part in (query, key, value)]
    masks = [None] * len(parts[0]) if mask is None else mask.split(MOST_WINDOWS)
    with sdpa_kernel(FUSED_KERNELS):
        attended = [
            F.scaled_dot_product_attention(own_query, own_key, own_value, attn_mask=own_mask)[..., 0]
            for own_query, own_key, own_value, own_mask in zip(*parts, masks, strict=True)
        ]
    return torch.cat(attended)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1).to(value.dtype) @ value)[..., 0]


class ReverseAttentionAdapter(nn.Module):
    """Compensates the features of one encoder stage where a modality is missing (paper section 3.3).

    With F_prev what enters the stage and F_cp what it gives,

        F_in = CNA(F_prev)              kernel and stride are the stage's stride
        F_h  = CNA(F_cp + F_in)         pointwise
        A    = sigmoid(WindowAttention(F_h))
        F    = where(missing, F_cp + s * (1 - A) * W F_h, F_cp)

    CNA is convolution - normalisation - activation of the plan's types; s is a factor for each channel, the sum of
    those of the modalities that are missing (or one for any), at first 1. The pointwise convolution W, which the paper
    does not have, starts at zero: the adapter is then the identity, and yet learns from the first step. Without W what
    is added to a channel would have one sign, that of s, for F_h is hardly ever negative.

    Args:
        encoder: nnU-Net's encoder, whose types of convolution, normalisation and activation are used.
        in_channels, channels: channels of F_prev and of F_cp.
        stride: the stage's stride, one number an axis.
        window: edge of an attention window in voxels; 0 means 64 tokens (4 in 3D, 8 in 2D).
        num_modalities: number of modalities whose absence has factors of its own; None for one factor whatever is
            missing.
        reverse_attention: whether there is attention; without it A = 0.
    """

    def __init__(
        self,
        encoder: PlainConvEncoder | ResidualEncoder,
        in_channels: int,
        channels: int,
        stride: Sequence[int],
        window: int = 0,
        *,
        num_modalities: int | None = None,
        reverse_attention: bool = True,
    ) -> None:
        super().__init__()
        dims = convert_conv_op_to_dim(encoder.conv_op)

        def block(channels_in: int, step: Sequence[int]) -> ConvDropoutNormReLU:
            return ConvDropoutNormReLU(
                encoder.conv_op,
                channels_in,
                channels,
                list(step),
                list(step),
                encoder.conv_bias,
                encoder.norm_op,
                encoder.norm_op_kwargs,
                nonlin=encoder.nonlin,
                nonlin_kwargs=encoder.nonlin_kwargs,
            )

        self.inject = block(in_channels, stride)
        self.fuse = block(channels, [1] * dims)
        self.project = encoder.conv_op(channels, channels, 1)
        self.attention = (
            WindowAttention(encoder.conv_op, channels, window or TOKENS_EDGE[dims]) if reverse_attention else None
        )
        self.knows_modalities = num_modalities is not None
        self.scale = nn.Parameter(torch.ones(num_modalities or 1, channels))
        self.start_as_identity()

    def start_as_identity(self) -> None:
        """Let the adapter add nothing; W has a gradient all the same."""
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def forward(self, previous: Tensor, current: Tensor, missing: Tensor) -> Tensor:
        """Adapt `current` `(B, C, X, Y[, Z])` of the samples that lack a modality.

        Args:
            previous: F_prev, the (adapted) input of the stage, `(B, C_prev, X * stride, ...)`.
            current: F_cp, the stage's output.
            missing: `(B, M)`, True for the modalities that a sample lacks.
        """
        any_missing = missing.any(1, keepdim=True)
        # no matrix product: autocast would make it half precision, in which the factors' gradients overflow
        scale = ((missing if self.knows_modalities else any_missing).unsqueeze(-1) * self.scale).sum(1)
        spatial = [1] * (current.ndim - 2)
        hidden = self.fuse(current + self.inject(previous))
        compensation = scale.view(*scale.shape, *spatial) * self.project(hidden)
        if self.attention is not None:
            compensation = (1 - torch.sigmoid(self.attention(hidden))) * compensation
        return torch.where(any_missing.view(-1, 1, *spatial), current + compensation.to(current.dtype), current)

    def compute_conv_feature_map_size(self, output_size: Sequence[int]) -> int:
        """Return nnU-Net's memory measure: values in all convolution outputs for a stage output of `output_size`."""
        channels = 3 * self.scale.shape[1]
        if self.attention is not None:
            channels += 2 * self.attention.inner + self.attention.heads
        return math.prod(output_size) * channels
