"""`advance` by the Triton kernel of `kernels/advance.py`: checks a State, takes it apart, launches.

Triton's interpreter (TRITON_INTERPRET=1, set before Python starts) runs the same kernel on CPU tensors; tests use it.
"""

import importlib.util
import os
import shutil
import sys
from collections import namedtuple

import torch
from torch import Tensor

from ..plan import COLUMNS
from ..state import State

_NETWORK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_STATE_DTYPES = (torch.float64, torch.float32)
_LARGEST = 2**31 - 1024  # elements of a sample: offsets inside one have 32 bits
Layout = tuple[int, int, int, bool]  # strides of samples, channels and pixels; whether elements lie as in x
_COLUMNS = namedtuple("_COLUMNS", COLUMNS)(*range(len(COLUMNS)))


def not_supported_reasons(
    device: torch.device, state_dtype: torch.dtype, net_dtype: torch.dtype = torch.float32
) -> list[str]:
    """Why `advance` cannot run there."""
    if importlib.util.find_spec("triton") is None:
        return ["triton is not installed"]
    reasons = []
    if device.type not in ("cuda", "cpu"):
        reasons.append(f"the device is {device}, not a CUDA device")
    elif not _interpreted():
        if device.type == "cpu":
            reasons.append("the device is cpu, no CUDA device, and Triton's interpreter is not on")
        elif not torch.cuda.is_available():
            reasons.append("torch sees no CUDA device")
        elif torch.version.hip is not None:
            reasons.append("its arithmetic has been checked on NVIDIA devices only, and this is ROCm")
        elif torch.cuda.get_device_capability(device) < (8, 0):
            reasons.append("it needs compute capability 8.0")
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            reasons.append("Triton finds no C compiler, with which it builds its launchers: gcc or clang in PATH")
    if state_dtype not in _STATE_DTYPES:
        reasons.append(f"the state is {state_dtype}; allowed: float64, float32")
    if net_dtype not in _NETWORK_DTYPES:
        reasons.append(f"the network is {net_dtype}; allowed: {', '.join(map(str, _NETWORK_DTYPES))}")
    return reasons


def advance(F: Tensor | None, state: State, k: int, G: Tensor | None = None) -> None:
    """`reference.advance` to the bit; networks of float32, float16 or bfloat16.

    Raises ValueError for buffers the kernel cannot address and for dtypes it does not know.
    """
    from ..kernels import advance as kernel  # Triton is optional: only who launches imports it
    from ..kernels.guide_scale import guide_scale

    x, noise = state.x, state.noise
    _check(F, G, state)
    if x.numel() == 0:
        return
    net_strides = _strides(state.net_in, x)
    if net_strides is None:
        raise ValueError(f"net_in has strides {state.net_in.stride()}; allowed: contiguous, channels_last")
    F, F_strides = _addressable(F, x, net_strides)
    G, G_strides = _addressable(G, x, net_strides)
    outputs = (F, kernel.Strides(*F_strides), G, kernel.Strides(*G_strides))
    base_row = state.base_row.contiguous()
    if state.guide_scale is not None and F is not None:
        guide_scale(F, *outputs[1:], state.guide_scale, x, state.table, base_row, k, _COLUMNS)
    kernel.advance(
        *outputs,
        state.guide_scale,
        state.known,
        x,
        state.slots,
        state.net_in,
        kernel.Strides(*net_strides),
        state.c_noise,
        state.table,
        base_row,
        state.bad_row,
        None if noise.seeds is None else noise.seeds.contiguous(),
        noise.latents,
        noise.eps,
        k,
        _COLUMNS,
    )


def _interpreted() -> bool:
    """Whether the kernels are, or would be, defined for the interpreter; Triton is not imported only to say no."""
    if "TRITON_INTERPRET" not in os.environ and "triton" not in sys.modules:
        return False
    from ..kernels import advance as kernel

    return bool(kernel.INTERPRETED.value)


def _addressable(t: Tensor | None, x: Tensor, absent: Layout) -> tuple[Tensor | None, Layout]:
    """A network's output and its strides, copied if these are not so simple; absent: what stands for those of none."""
    if t is None:
        return None, absent
    strides = _strides(t, x)
    if strides is None:
        t = t.contiguous()
        strides = _strides(t, x)
    assert strides is not None
    return t, strides


def _strides(t: Tensor, x: Tensor) -> Layout | None:
    """Strides of samples, channels and pixels, and whether elements lie as in x; None if they are not so simple."""
    channels, spatial = x.shape[1], list(zip(x.shape[2:], t.stride()[2:], strict=True))
    collapsed = [(size, stride) for size, stride in spatial if size > 1]
    pixels, pixel = 1, collapsed[-1][1] if collapsed else 1
    for size, stride in reversed(collapsed):
        if stride != pixels * pixel:
            return None
        pixels *= size
    channel = t.stride(1) if channels > 1 else pixels
    if channel * (channels - 1) + pixel * (pixels - 1) >= _LARGEST:
        raise ValueError(f"a sample of strides {t.stride()} spans 2^31 elements or more; allowed: fewer")
    return (t.stride(0) if len(t) > 1 else 0), channel, pixel, channel == pixels and pixel == 1


def _check(F: Tensor | None, G: Tensor | None, state: State) -> None:
    """Everything the kernel takes for granted; one message an error."""
    x, noise = state.x, state.noise
    batch, shape = x.shape[0], tuple(x.shape)
    copies = max(1, len(state.net_in) // max(1, batch))
    inputs = [("net_in", state.net_in), *((name, t) for name, t in (("F", F), ("G", G)) if t is not None)]
    for name, t in inputs:
        _require(name, t, t.dtype in _NETWORK_DTYPES, "float32, float16, bfloat16 (a float64 network: cpu, reference)")
        samples = batch * (copies if name == "net_in" else 1)
        fits = t.dim() == x.dim() and (len(t), *t.shape[2:]) == (samples, *shape[2:]) and t.shape[1] >= shape[1]
        _require(name, t, fits, f"the shape of x, {list(shape)}, or more channels")
    if F is not None and G is not None:
        _require("G", G, F.dtype == G.dtype, "the dtype of F")
    drawn: list[tuple[str, Tensor]] = []
    if state.guide_scale is not None:
        scale = state.guide_scale
        _require("guide_scale", scale, scale.dtype == torch.float64 and scale.shape == (batch,), f"float64 [{batch}]")
        drawn.append(("guide_scale", scale))
    if state.known is not None:
        known = state.known
        _require("known", known, known.dtype == torch.float32 and known.shape == shape, f"float32 {list(shape)}")
        drawn.append(("known", known))
    rows = [("base_row", state.base_row), ("bad_row", state.bad_row)]
    rows += [] if noise.seeds is None else [("seeds", noise.seeds)]
    for name, t in rows:
        _require(name, t, t.dtype == torch.int64 and t.shape == (batch,), f"int64 [{batch}]")
    buffers = [("latents", noise.latents, shape), ("eps", noise.eps, (-1, *shape))]
    for name, t, want in [(name, t, want) for name, t, want in buffers if t is not None]:
        drawn.append((name, t))
        _require(name, t, tuple(t.shape[-len(shape) :]) == shape and t.dim() == len(want), f"shape {list(want)}")
        _require(name, t, t.dtype in _STATE_DTYPES, "float64, float32")
    slots, table = state.slots, state.table
    _require("x", x, x.dtype in _STATE_DTYPES and x.dim() >= 2, "[B, C, *spatial] of float64 or float32")
    _require("x", x, x[:1].numel() < _LARGEST, "fewer than 2^31 elements a sample")
    _require(
        "slots", slots, slots.dtype == x.dtype and tuple(slots.shape[1:]) == shape, f"{x.dtype} [n, *{list(shape)}]"
    )
    width = len(COLUMNS)
    _require("table", table, table.dtype == torch.float64 and table.shape[1:] == (width,), f"float64 [rows, {width}]")
    _require(
        "c_noise",
        state.c_noise,
        state.c_noise.dtype == torch.float32 and len(state.c_noise) == copies * batch,
        f"float32 [{copies * batch}]",
    )
    plain = [("x", x), ("slots", slots), ("table", table), ("c_noise", state.c_noise), ("bad_row", state.bad_row)]
    for name, t in [*plain, *drawn]:
        _require(name, t, t.is_contiguous(), "contiguous")
    for name, t in [*inputs, *rows, *plain, *drawn]:
        _require(name, t, t.device == x.device, f"on the device of x, {x.device}")


def _require(name: str, t: Tensor, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {t.dtype} {list(t.shape)} on {t.device}, strides {t.stride()}; allowed: {allowed}")
