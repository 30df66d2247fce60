"""Backends: who can run ``advance``, fastest first, and why a backend cannot.

A backend is a record, not a class hierarchy; adding one is adding it to `BACKENDS`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import reference
from ..state import State
from . import native, triton


class Reasons(Protocol):
    """Why a backend cannot run on a device with these dtypes; empty if it can."""

    def __call__(
        self, device: torch.device, state_dtype: torch.dtype, net_dtype: torch.dtype = torch.float32
    ) -> list[str]: ...


class Advance(Protocol):
    """`reference.advance`, to the bit."""

    def __call__(self, F: Tensor | None, state: State, k: int, G: Tensor | None = None) -> None: ...


@dataclass(frozen=True)
class Backend:
    """``advance(F, state, k, G)`` with the bits of `reference.advance`; no ``not_supported_reasons``: it can run.

    capturable: it only queues work on the device, so that a CUDA graph can hold it.
    """

    name: str
    advance: Advance
    not_supported_reasons: Reasons
    capturable: bool = True


REFERENCE = Backend(
    "reference", reference.advance, lambda device, state_dtype, net_dtype=torch.float32: [], capturable=False
)

TRITON = Backend("triton", triton.advance, triton.not_supported_reasons)
CPU = Backend("cpu", native.advance_cpu, native.cpu_not_supported_reasons)
CUDA = Backend("cuda", native.advance_cuda, native.cuda_not_supported_reasons)

BACKENDS: tuple[Backend, ...] = (CUDA, CPU, TRITON, REFERENCE)


def select(name: str, device: torch.device, state_dtype: torch.dtype, net_dtype: torch.dtype) -> Backend:
    """The named backend, or for "auto" the fastest that can run. Raises ValueError with every candidate's reasons."""
    candidates = [backend for backend in BACKENDS if name in ("auto", backend.name)]
    if not candidates:
        raise ValueError(f"backend is {name!r}; allowed: auto, {', '.join(b.name for b in BACKENDS)}")
    reasons = {b.name: b.not_supported_reasons(device, state_dtype, net_dtype) for b in BACKENDS}
    for backend in candidates:
        if not reasons[backend.name]:
            return backend
    listed = " | ".join(f"{b}: {'; '.join(why) or 'can run'}" for b, why in reasons.items())
    raise ValueError(f"backend {name!r} cannot run here. {listed}")
