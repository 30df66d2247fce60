"""The networks' operations on a CPU: GroupNorm, float32 linear layers, attention and most convolutions in our C++
(csrc/group_norm_op.h, linear_op.h, attention_op.h, winograd_op.h); other convolutions by oneDNN. Weights are packed
once, and the sum that follows is inside."""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops, winograd
from .dense import (
    DTYPES,
    empty,
    output_shapes,
    require_dense,
    require_dtype,
    require_weights,
    resamples,
    rows,
    rows_alike,
    suits,
)
from .ops import Packed, Resample
from .recording import apart, native
from .tape import extension
from .winograd import tile_for

if TYPE_CHECKING:
    from engine import _native

_KEYS = 2**20  # numbers in a head's keys: each worker lays out its own, and keeps the memory, 8 bytes for each
_PACKED_SHAPES = 2  # kept of a layer's weight: a job's batches, and its last


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    beside: Tensor | None = None,
    add: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    resample: Resample | None = None,
    keep: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`ops.group_norm`, closer to float64 than it in half precision, and faster (`bench/bench_unet.py`).

    A sample's bits depend neither on the other samples nor on the number of threads. What it does not know (other
    layouts than channels_last, float64, gradients, long filters) torch computes.
    """
    if not (suits(x, beside) and x.device.type == "cpu" and resamples(x, resample)):
        return ops.group_norm(
            x, weight, bias, groups, eps,
            silu=silu, beside=beside, add=add, scale_shift=scale_shift, resample=resample, keep=keep,
        )  # fmt: skip
    require_weights(x, beside, weight, bias)
    add = rows(add)
    scale, shift = rows_alike(scale_shift)
    batch, own, height, width = x.shape
    dtypes, resamplings = _names()
    others = 0 if beside is None else beside.shape[1]
    norm = (dtypes[x.dtype], (batch, height, width, own, others), groups, eps, silu)
    strides = (0 if add is None else add.stride(0), 0 if scale is None else scale.stride(0))
    shape, kept_shape = output_shapes(x, beside, resample, keep)
    resampling = (resamplings[None if resample is None else resample.up], () if resample is None else resample.taps)

    out, kept = empty(x, shape), None if kept_shape is None else empty(x, kept_shape)
    native(
        "GroupNorm", (x, beside, weight, bias, out, kept, add, scale, shift), *norm, *strides,
        1.0 if keep is None else keep, *resampling,
    )  # fmt: skip
    return out, x if kept is None else kept


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    add: Tensor | None = None,
    packed: Packed | None = None,
) -> Tensor:
    """`ops.conv2d`, by Winograd's filtering where `winograd.tile_for` says so, otherwise by oneDNN.

    The weight is packed when it is first needed, for oneDNN by the shape of x; the last few are kept.
    """
    if packed is None or not suits(x) or x.device.type != "cpu":
        return ops.conv2d(x, weight, bias, padding, add)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x is {list(x.shape)}; allowed: [B, {weight.shape[1]}, H, W]")
    m = tile_for(x, weight, padding) if suits(add) else None
    if m is not None:
        own = _packed(packed, "winograd", lambda: winograd.pack(weight))
        return _convolve(x, own, weight.shape[0], bias, add, m)
    if not winograd.onednn_knows(x.dtype):
        return ops.conv2d(x, weight, bias, padding, add)
    pads, ones = [padding, padding], [1, 1]
    own = _packed(
        packed,
        x.shape,
        lambda: torch.ops.mkldnn._reorder_convolution_weight(weight, pads, ones, ones, 1, list(x.shape)),
    )
    if add is not None and add.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, own, bias, pads, ones, ones, 1, "add", 1.0, None, [], ""
        )
    y = torch.ops.mkldnn._convolution_pointwise.default(x, own, bias, pads, ones, ones, 1, "none", [], "")
    return y if add is None else y.add_(add)


def _packed(packed: Packed, key: torch.Size | str, pack: Callable[[], Tensor]) -> Tensor:
    own = packed.get(key)
    if own is None:
        with apart():
            own = pack()
        for oldest in list(packed)[: 1 - _PACKED_SHAPES]:  # a copy: other threads may be at it too
            packed.pop(oldest, None)
        packed[key] = own
    return own


def _convolve(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    bias: Tensor | None,
    add: Tensor | None,
    m: int,
) -> Tensor:
    """By Winograd's filtering, of a packed weight; a sample's bits depend on nothing else."""
    inputs = weight.shape[1]
    if x.shape[1] < inputs:
        x = F.pad(x, (0, 0, 0, 0, 0, inputs - x.shape[1])).contiguous(memory_format=torch.channels_last)
    batch, _, height, width = x.shape
    require_dtype(x, bias=bias, add=add)
    require_dense(bias, outputs, "bias")
    if add is not None and add.shape != (batch, outputs, height, width):
        raise ValueError(f"add is {list(add.shape)}; allowed: {[batch, outputs, height, width]}")
    dtype, sizes = _names()[0][x.dtype], (batch, height, width, inputs, outputs)

    out = empty(x, (batch, outputs, height, width))
    native("Winograd", (x, weight, bias, add, out), dtype, sizes, m)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, add: Tensor | None = None, silu: bool = False) -> Tensor:
    """`ops.linear` in float32; a row's bits depend neither on the other rows nor on the number of threads."""
    tensors = [t for t in (x, weight, bias, add) if t is not None]
    if not all(t.dtype == torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in tensors) or (
        torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    ):
        return ops.linear(x, weight, bias, add=add, silu=silu)
    shape = (x.shape[0], weight.shape[0])
    if x.dim() != 2 or x.shape[1] != weight.shape[1] or (add is not None and add.shape != shape):
        given = f"x is {list(x.shape)}, add {None if add is None else list(add.shape)}"
        raise ValueError(f"{given}; allowed: [B, {weight.shape[1]}], and None or [B, {weight.shape[0]}]")
    sizes = (*x.shape, weight.shape[0])

    out = x.new_empty(shape)
    native("Linear", (x, weight, bias, add, out), sizes, silu)
    return out


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`ops.attention`; what it does not know torch computes, and bfloat16 where there is AMX.

    On an AMD with AVX-512 in half of torch's time, in float16 a quarter; with AVX2 alone in about torch's. A sample's
    bits depend neither on the other samples nor on the number of threads.
    """
    if not _attends(q, k, v):
        return ops.attention(q, k, v)
    batch, heads, length, channels = shape = tuple(q.shape)
    dtype, strides = _names()[0][q.dtype], q.stride()[:3]

    out = empty(q, (batch, heads * channels, length, 1)).permute(0, 2, 3, 1).view(batch, length, heads, channels)
    out = out.transpose(1, 2)
    native("Attention", (q, k, v, out), dtype, shape, strides, out.stride()[:3])
    return out


def _attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.dim() != 4 or q.dtype not in DTYPES or q.device.type != "cpu" or q.stride(3) != 1:
        return False
    if not q.numel() or q.shape[2] * q.shape[3] > _KEYS or (q.dtype == torch.bfloat16 and winograd.has_amx()):
        return False
    alike = all(t.shape == q.shape and t.dtype == q.dtype and t.stride() == q.stride() for t in (k, v))
    return alike and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)))


@cache
def _names() -> tuple[dict[torch.dtype, "_native.Dtype"], dict[bool | None, "_native.Resampling"]]:
    """What the extension calls dtypes, and resampling by whether it is up."""
    dtype, resampling = extension().Dtype, extension().Resampling
    dtypes = {torch.float32: dtype.float32, torch.bfloat16: dtype.bfloat16, torch.float16: dtype.float16}
    return dtypes, {None: resampling.none, True: resampling.up, False: resampling.down}


def available() -> bool:
    """Whether the extension is there."""
    return importlib.util.find_spec("engine._native") is not None


NATIVE = ops.Ops("native", group_norm, conv2d, linear, attention)
