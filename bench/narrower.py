"""A processor as if it had less than it has: AVX2 alone, as most laptops do."""

import os
from functools import partial

import torch

from engine import _native
from engine.networks import native_ops, winograd


def without_avx512() -> None:
    """For this process, before its first operation: torch, oneDNN and our networks' operations use AVX2, and what is
    chosen by what the processor has is chosen for one that has no more. Raises RuntimeError if torch was faster."""
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = torch.backends.cpu.get_cpu_capability()
    if found != "AVX2":
        raise RuntimeError(f"torch uses {found} already, or the processor has no AVX2")
    for name in ("group_norm_cpu", "winograd_cpu", "linear_cpu"):
        setattr(_native, name, partial(getattr(_native, name), isa="avx2"))

    def onednn_knows(dtype: torch.dtype) -> bool:
        return dtype == torch.float32

    winograd.has_amx = winograd._has_fast_halves = lambda: False  # type: ignore[assignment]
    winograd.onednn_knows = native_ops.onednn_knows = onednn_knows  # type: ignore[assignment]
