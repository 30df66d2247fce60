"""The networks' operations on a CPU: GroupNorm, float32 linear layers, attention and most convolutions in our C++
(csrc/group_norm_op.h, linear_op.h, attention_op.h, winograd_op.h); other convolutions by oneDNN. Weights are packed
once, and the sum that follows is inside."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops, winograd
from .activations import Activations
from .dense import (
    DTYPES,
    Empty,
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
from .tape import whole
from .winograd import tile_for

if TYPE_CHECKING:
    from engine import _native

_NOTHING = nullcontext()
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
    make: Empty = empty,
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

    def normalise(
        x: Tensor, beside: Tensor | None, add: Tensor | None, scale: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        out, kept = make(x, shape), None if kept_shape is None else make(x, kept_shape)
        with _shown("edm::group_norm"):
            _extension().group_norm_cpu(
                x.data_ptr(), _address(beside), weight.data_ptr(), bias.data_ptr(), out.data_ptr(), _address(kept),
                *norm, _address(add), strides[0], _address(scale), _address(shift), strides[1],
                1.0 if keep is None else keep, *resampling, torch.get_num_threads(),
            )  # fmt: skip
        return out, kept

    out, kept = whole(normalise, x, beside, add, scale, shift)
    return out, x if kept is None else kept


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    add: Tensor | None = None,
    packed: Packed | None = None,
    make: Empty = empty,
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
        return _convolve(x, own, weight.shape[0], bias, add, m, make)
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
    make: Empty = empty,
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

    def convolve(x: Tensor, add: Tensor | None) -> Tensor:
        out = make(x, (batch, outputs, height, width))
        with _shown("edm::winograd"):
            _extension().winograd_cpu(
                x.data_ptr(), weight.data_ptr(), _address(bias), _address(add), out.data_ptr(), dtype, sizes, m,
                torch.get_num_threads(),
            )  # fmt: skip
        return out

    made: Tensor = whole(convolve, x, add)
    return made


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

    def multiply(x: Tensor, add: Tensor | None) -> Tensor:
        out = x.new_empty(shape)
        with _shown("edm::linear"):
            _extension().linear_cpu(
                x.data_ptr(), weight.data_ptr(), _address(bias), _address(add), out.data_ptr(), *sizes, silu,
                torch.get_num_threads(),
            )  # fmt: skip
        return out

    made: Tensor = whole(multiply, x, add)
    return made


def attention(q: Tensor, k: Tensor, v: Tensor, make: Empty = empty) -> Tensor:
    """`ops.attention`; what it does not know torch computes, and bfloat16 where there is AMX.

    On an AMD with AVX-512 in half of torch's time, in float16 a quarter; with AVX2 alone in about torch's. A sample's
    bits depend neither on the other samples nor on the number of threads.
    """
    if not _attends(q, k, v):
        return ops.attention(q, k, v)
    batch, heads, length, channels = shape = tuple(q.shape)
    dtype, strides = _names()[0][q.dtype], q.stride()[:3]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = make(q, (batch, heads * channels, length, 1)).permute(0, 2, 3, 1).view(batch, length, heads, channels)
        out = out.transpose(1, 2)
        with _shown("edm::attention"):
            _extension().attention_cpu(
                q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), dtype, shape, strides, out.stride()[:3],
                torch.get_num_threads(),
            )  # fmt: skip
        return out

    made: Tensor = whole(attend, q, k, v)
    return made


def _attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.dim() != 4 or q.dtype not in DTYPES or q.device.type != "cpu" or q.stride(3) != 1:
        return False
    if not q.numel() or q.shape[2] * q.shape[3] > _KEYS or (q.dtype == torch.bfloat16 and winograd.has_amx()):
        return False
    alike = all(t.shape == q.shape and t.dtype == q.dtype and t.stride() == q.stride() for t in (k, v))
    return alike and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)))


@cache
def _extension():  # type: ignore[no-untyped-def]  # a module; its types are in engine/_native.pyi
    """Imported once: to import it in every call took 2% of a small network's time at batch 1."""
    from engine import _native

    return _native


@cache
def _names() -> tuple[dict[torch.dtype, "_native.Dtype"], dict[bool | None, "_native.Resampling"]]:
    """What the extension calls dtypes, and resampling by whether it is up."""
    dtype, resampling = _extension().Dtype, _extension().Resampling
    dtypes = {torch.float32: dtype.float32, torch.bfloat16: dtype.bfloat16, torch.float16: dtype.float16}
    return dtypes, {None: resampling.none, True: resampling.up, False: resampling.down}


def available() -> bool:
    """Whether the extension is there."""
    return importlib.util.find_spec("engine._native") is not None


def _shown(name: str) -> AbstractContextManager[object]:
    """Makes a call into the extension an event of torch's profiler, where that is on; otherwise costs 0.2 us."""
    return torch.profiler.record_function(name) if torch.autograd.profiler._is_profiler_enabled else _NOTHING


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def native() -> ops.Ops:
    """The operations for one prepared network, with memory of its own for what they return."""
    make = Activations().empty
    return ops.Ops(
        "native",
        partial(group_norm, make=make),
        partial(conv2d, make=make),
        linear,
        partial(attention, make=make),
    )
