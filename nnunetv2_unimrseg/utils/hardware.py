"""What the processor can do."""

from __future__ import annotations

import functools
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NATIVE_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux names them: AMD and Intel with AVX-512, Intel with AMX, ARM."""


def device_option() -> str:
    """Return the option that commands need on this machine: " -device cpu" without CUDA, else ""."""
    import torch

    return "" if torch.cuda.is_available() else " -device cpu"


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context of full precision on a device; early versions of torch have no autocast on MPS to turn off."""
    import torch

    return torch.autocast(device.type, enabled=False) if device.type in ("cuda", "cpu") else nullcontext()


@functools.cache
def cpu_has_native_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU computes bfloat16 in hardware; False where that is not known (not Linux)."""
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return False
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return flags is not None and not NATIVE_BFLOAT16_FLAGS.isdisjoint(flags.group(1).split())
