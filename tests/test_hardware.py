"""What the processor is said to be able to do."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from nnunetv2_unimrseg.utils.hardware import cpu_has_native_bfloat16, device_option, without_autocast


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu sse2 avx512f avx512_bf16 avx512_vnni", True),
        ("flags\t\t: fpu amx_tile amx_bf16", True),
        ("Features\t: fp asimd i8mm bf16", True),
        ("flags\t\t: fpu sse2 avx2 avx512f", False),
        ("Features\t: fp asimd sve2", False),
        ("model name\t: a processor named bf16", False),
    ],
)
def test_native_bfloat16_is_read_from_the_flags(tmp_path, line, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\nbogomips\t: 5000\n")
    assert cpu_has_native_bfloat16(str(file)) is expected


def test_without_a_list_of_flags_bfloat16_is_not_assumed(tmp_path):
    assert cpu_has_native_bfloat16(str(tmp_path / "none")) is False


@pytest.mark.parametrize(("cuda", "expected"), [(True, ""), (False, " -device cpu")])
def test_commands_name_the_cpu_where_there_is_no_cuda(monkeypatch, cuda, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert device_option() == expected


def test_without_autocast_is_full_precision_where_there_is_autocast():
    with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    assert isinstance(without_autocast(torch.device("mps")), nullcontext)
