"""A processor as if it had less than it has: AVX2 alone, as most laptops do."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from engine import _native
from engine.networks import winograd


def without_avx512() -> None:
    """For this process, before its first operation: torch, oneDNN and our networks' operations use AVX2, and what is
    chosen by what the processor has is chosen for one that has no more. Raises RuntimeError if torch was faster."""
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = torch.backends.cpu.get_cpu_capability()
    if found != "AVX2":
        raise RuntimeError(f"torch uses {found} already, or the processor has no AVX2")
    for name in ("advance_cpu", "normal", "run_cpu"):
        setattr(_native, name, partial(_narrowed, getattr(_native, name)))
    _native.Program = _Narrowed  # type: ignore[misc]
    winograd.has_amx = winograd._has_fast_halves = lambda: False  # type: ignore[assignment]
    winograd.onednn_knows = lambda dtype: dtype == torch.float32  # type: ignore[assignment]


def _narrowed(call: Callable[..., Any], *arguments: Any) -> Any:
    """With AVX2 where "auto" is asked for, or nothing."""
    return call(*(a for a in arguments if a != "auto"), isa="avx2")


class _Narrowed(_native.Program):
    def run(self, *arguments: Any) -> None:
        super().run(*arguments, isa="avx2")
