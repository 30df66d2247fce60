"""`advance` in C++ (``cpu``) and CUDA (``cuda``): checks a State, takes it apart into addresses and strides, calls.

Both come from one header, csrc/advance.h. The extension does not link torch and knows tensors as numbers only.
"""

import importlib.util
import math
from functools import cache, lru_cache
from operator import is_
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..plan import COLUMNS
from ..state import State

if TYPE_CHECKING:
    from engine import _native

_NETWORK_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATE_DTYPES = (torch.float64, torch.float32)


def cpu_not_supported_reasons(
    device: torch.device, state_dtype: torch.dtype, net_dtype: torch.dtype = torch.float32
) -> list[str]:
    """Why the C++ backend cannot run there."""
    reasons = _extension_reasons(state_dtype, net_dtype)
    if device.type != "cpu":
        reasons.append(f"the device is {device}, not a CPU")
    return reasons


def cuda_not_supported_reasons(
    device: torch.device, state_dtype: torch.dtype, net_dtype: torch.dtype = torch.float32
) -> list[str]:
    """Why the CUDA backend cannot run there."""
    reasons = _extension_reasons(state_dtype, net_dtype)
    if not reasons and not _extension().cuda_built:
        reasons.append("engine._native was built without CUDA: there was no nvcc")
    if device.type != "cuda":
        reasons.append(f"the device is {device}, not a CUDA device")
    elif not torch.cuda.is_available():
        reasons.append("torch sees no CUDA device")
    elif torch.version.hip is not None:
        reasons.append("the device is AMD's, and engine._native is built for NVIDIA's")
    elif torch.cuda.get_device_capability(device) < (8, 0):
        reasons.append("the device is older than compute capability 8.0")
    return reasons


def advance_cpu(
    F: Tensor | None, state: State, k: int, G: Tensor | None = None, *, threads: int | None = None, isa: str = "auto"
) -> None:
    """`reference.advance` in C++ on CPU tensors; the bits depend on neither ``threads`` nor ``isa``.

    F: float32, float16, bfloat16 or float64. threads: torch's own number where None. isa: "auto" or one of
    `_native.normal_isas()`. Raises ValueError for tensors it cannot use and rows the state lacks something for,
    IndexError for a row outside the table; then nothing has been written.
    """
    F, G = _addressable(F), _addressable(G)
    _extension().advance_cpu(
        _call(F, state, k, G), min(torch.get_num_threads(), 1024) if threads is None else threads, isa
    )


def advance_cuda(F: Tensor | None, state: State, k: int, G: Tensor | None = None) -> None:
    """`reference.advance` as one CUDA kernel on the current stream of the state's device; see `advance_cpu`.

    A state with guide_scale takes a second kernel before it, which finds the samples' scales.
    It neither waits for the device nor allocates, unless F's pixels do not lie at one stride. A sample whose row is
    outside the table, or lacks F, G, guide_scale, noise or slots, is not advanced but marked in ``bad_row``.
    Raises RuntimeError with CUDA's message when the launch fails.
    """
    F, G, device = _addressable(F), _addressable(G), state.x.device
    _extension().advance_cuda(_call(F, state, k, G), device.index or 0, torch.cuda.current_stream(device).cuda_stream)


def _extension_reasons(state_dtype: torch.dtype, net_dtype: torch.dtype) -> list[str]:
    # Looked for, not tried: an extension that is there but does not load is an error to show.
    if importlib.util.find_spec("engine._native") is None:
        return ["engine._native is not built"]
    reasons = []
    if tuple(_extension().row_columns()) != COLUMNS:
        reasons.append("engine._native was built for other table columns: build it again")
    if state_dtype not in _STATE_DTYPES:
        reasons.append(f"the state is {state_dtype}; allowed: float64, float32")
    if net_dtype not in _NETWORK_DTYPES:
        reasons.append(f"the network is {net_dtype}; allowed: {', '.join(map(str, _NETWORK_DTYPES))}")
    return reasons


def _extension():  # type: ignore[no-untyped-def]  # a module; its types are in engine/_native.pyi
    from engine import _native

    return _native


def _addressable(F: Tensor | None) -> Tensor | None:
    """F, copied if its pixels do not lie at one stride. The caller holds it until the extension is done with it."""
    return F if F is None or _pixel_stride(F.shape, F.stride()) else F.contiguous()


class _Bound:
    """A state's buffers, checked and taken apart: a loop advances the same ones row after row, and doing it for each
    took half of all time outside the network."""

    def __init__(self, state: State, buffers: tuple[object, ...]) -> None:
        self.buffers, self.call = buffers, _checked(state)

    def __deepcopy__(self, memo: object) -> None:
        """A copy of a state has buffers of its own."""


def _call(F: Tensor | None, state: State, k: int, G: Tensor | None = None) -> "_native.AdvanceCall":
    """Valid until the next for this state."""
    of = (
        state.x, state.slots, state.net_in, state.c_noise, state.table, state.base_row, state.bad_row, state.noise,
        state.guide_scale, state.known,
    )  # fmt: skip
    bound = state.bound
    if bound is None or not all(map(is_, bound.buffers, of)):
        bound = state.bound = _Bound(state, of)
    call = bound.call
    call.k = k
    call.F = _nothing() if F is None else _strided(F, "F", state.x)
    call.G = _nothing() if G is None else _strided(G, "G", state.x)
    return call


def _checked(state: State) -> "_native.AdvanceCall":
    """All of a call but the row and what the network made."""
    native = _extension()
    x, slots, noise = state.x, state.slots, state.noise
    batch, channels = x.shape[:2]
    call = native.AdvanceCall()
    call.samples, call.channels, call.pixels = batch, channels, math.prod(x.shape[2:])
    call.rows = len(state.table)
    call.table = _address(state.table, "table", x.device, (torch.float64,), (call.rows, len(COLUMNS)))
    call.base_row = _address(state.base_row, "base_row", x.device, (torch.int64,), (batch,))
    call.bad_row = _address(state.bad_row, "bad_row", x.device, (torch.int64,), (batch,))
    call.copies = max(1, len(state.net_in) // max(1, batch))
    call.c_noise = _address(state.c_noise, "c_noise", x.device, (torch.float32,), (call.copies * batch,))
    call.x = _address(x, "x", x.device, _STATE_DTYPES, x.shape)
    call.slots = _address(slots, "slots", x.device, (x.dtype,), (len(slots), *x.shape)) if len(slots) else 0
    call.slot_count, call.state_dtype = len(slots), _dtype(x.dtype)
    call.net_in = _strided(state.net_in, "net_in", x, call.copies)
    if state.guide_scale is not None:
        call.guide_scale = _address(state.guide_scale, "guide_scale", x.device, (torch.float64,), (batch,))
    if state.known is not None:
        call.known = _address(state.known, "known", x.device, (torch.float32,), x.shape)
    if noise.seeds is not None:
        call.seeds = _address(noise.seeds, "seeds", x.device, (torch.int64,), (batch,))
    if noise.latents is not None:
        call.latents = _buffer(noise.latents, "latents", x.device, x.shape)
    if noise.eps is not None:
        call.eps, call.draws = _buffer(noise.eps, "eps", x.device, (len(noise.eps), *x.shape)), len(noise.eps)
    return call


@cache
def _nothing() -> "_native.Buffer":
    return _extension().Buffer(0, _dtype(torch.float32))


@cache
def _dtype(dtype: torch.dtype) -> "_native.Dtype":
    found: _native.Dtype = getattr(_extension().Dtype, str(dtype).removeprefix("torch."))
    return found


def _address(
    t: Tensor, name: str, device: torch.device, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> int:
    """Where a contiguous tensor lies, after checking that it is what the extension will take it for."""
    if t.dtype not in dtypes or t.shape != shape or t.device != device or not t.is_contiguous():
        allowed = f"{' or '.join(map(str, dtypes))} {list(shape)}, contiguous, on {device}"
        raise ValueError(
            f"{name} is {t.dtype} {list(t.shape)}, strides {t.stride()}, on {t.device}; allowed: {allowed}"
        )
    return t.data_ptr()


def _buffer(t: Tensor, name: str, device: torch.device, shape: tuple[int, ...]) -> "_native.Buffer":
    """Noise that the caller brought."""
    address = _address(t, name, device, _STATE_DTYPES, shape)
    return _extension().Buffer(address, _dtype(t.dtype))


def _strided(t: Tensor, name: str, x: Tensor, copies: int = 1) -> "_native.Buffer":
    """The network's output or input, like x but in another dtype and layout, and perhaps with more channels."""
    pixel = _pixel_stride(t.shape, t.stride()) if _fits(t.shape, x.shape, copies) else 0
    if t.dtype not in _NETWORK_DTYPES or t.device != x.device or not pixel:
        allowed = f"{', '.join(map(str, _NETWORK_DTYPES))}; {list(x.shape)} or more channels; on {x.device}"
        raise ValueError(
            f"{name} is {t.dtype} {list(t.shape)}, strides {t.stride()}, on {t.device}; allowed: {allowed}"
        )
    batch, channel = t.stride()[:2]
    return _extension().Buffer(t.data_ptr(), _dtype(t.dtype), batch, channel, pixel)


@lru_cache(maxsize=256)  # a sampling loop asks the same of every evaluation's output
def _fits(shape: torch.Size, x: torch.Size, copies: int) -> bool:
    """Whether a network's input or output has the samples and the spatial shape of x, and its channels or more."""
    return len(shape) == len(x) and shape[2:] == x[2:] and shape[1] >= x[1] and shape[0] == copies * x[0]


@lru_cache(maxsize=256)
def _pixel_stride(shape: torch.Size, strides: tuple[int, ...]) -> int:
    """The one stride at which a tensor's pixels lie in order; 0 if there is none."""
    spatial = [pair for pair in zip(shape[2:], strides[2:], strict=True) if pair[0] > 1]
    pixel, pixels = spatial[-1][1] if spatial else 1, 1
    for size, stride in reversed(spatial):
        if stride != pixel * pixels:
            return 0
        pixels *= size
    return pixel
