"""The window attention of the adapters: against loops, on the paths of GPUs, in half precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from nnunetv2_unimrseg.method.networks import adapter as adapter_module
from nnunetv2_unimrseg.method.networks.adapter import WindowAttention


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 8, 3), (6, 7), (16, 16)])
@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (64, 1), (192, 3)])
def test_window_attention_against_loops(size, channels, heads):
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
    attention = WindowAttention(conv, channels, 4).double()
    assert attention.heads == heads
    x = torch.randn(2, channels, *size, dtype=torch.double)
    expected = torch.empty(2, 1, *size, dtype=torch.double)
    query, key = attention.query_key(x).chunk(2, 1)
    value = attention.value(x)
    width = attention.inner // attention.heads
    edges = [min(4, extent) for extent in size]
    for starts in itertools.product(*(range(0, extent, edge) for extent, edge in zip(size, edges, strict=True))):
        window = tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
        for sample in range(2):
            heads = []
            for head in range(attention.heads):
                channel = slice(head * width, (head + 1) * width)
                q, k = (part[(sample, channel, *window)].flatten(1).T for part in (query, key))
                # a head's full values are any channels whose mean is the projected one
                spread = torch.randn(width, dtype=torch.double)
                v = value[(sample, head, *window)].flatten()[:, None] + (spread - spread.mean())[None, :]
                heads.append(((q @ k.T / math.sqrt(width)).softmax(1) @ v).mean(1))
            result = torch.stack(heads).mean(0)
            expected[(sample, 0, *window)] = result.view(expected[(sample, 0, *window)].shape)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 8, 3), (6, 7)])
@pytest.mark.parametrize("channels", [8, 64, 96])
@pytest.mark.parametrize("most_windows", [adapter_module.MOST_WINDOWS, 3])
def test_fused_attention_of_gpus_gives_the_same(monkeypatch, size, channels, most_windows):
    torch.manual_seed(0)
    attention = WindowAttention({2: nn.Conv2d, 3: nn.Conv3d}[len(size)], channels, 4)
    x = torch.randn(2, channels, *size)
    explicit = attention(x)
    monkeypatch.setattr(adapter_module, "_explicit_attention", adapter_module._fused_attention)
    monkeypatch.setattr(adapter_module, "MOST_WINDOWS", most_windows)
    torch.testing.assert_close(attention(x), explicit)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_attention_on_a_gpu_takes_as_many_windows_as_a_large_patch_has():
    attention = WindowAttention(nn.Conv3d, 8, 4).cuda()
    x = torch.randn(2, 8, 128, 128, 160, device="cuda", requires_grad=True)
    with torch.autocast("cuda"):
        attended = attention(x)
    attended.float().square().mean().backward()
    assert attended.isfinite().all() and x.grad.isfinite().all() and x.grad.any()


def test_padding_of_windows_is_attended_by_none_in_half_precision():
    torch.manual_seed(0)
    attention = WindowAttention(nn.Conv3d, 32, 4)
    x = torch.randn(1, 32, 5, 6, 7)
    expected = attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attention(x).float(), expected, atol=0.02, rtol=0.05)


def test_windows_are_independent_of_each_other():
    attention = WindowAttention(nn.Conv2d, 16, 4)
    x = torch.randn(1, 16, 8, 6)
    changed = x.clone()
    changed[..., 4:, 4:] += 1
    difference = (attention(x) != attention(changed))[0, 0]
    assert difference[4:, 4:].all()
    difference[4:, 4:] = False
    assert not difference.any()
