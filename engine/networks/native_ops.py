"""The networks' operations on a CPU: GroupNorm in our C++ (csrc/group_norm_op.h); convolution by oneDNN, on weights
packed once and with the sum that follows inside it."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from . import ops

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PACKED_SHAPES = 2  # kept of a layer's weight: a job's batches, and its last


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """`ops.group_norm`."""
    return _run(x, weight, bias, groups, eps, silu=False) if _suits(x) else ops.group_norm(x, weight, bias, groups, eps)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """`ops.group_norm_silu`, closer to float64 than it in half precision, and faster (`bench/bench_unet.py`).

    A sample's bits depend neither on the other samples nor on the number of threads. What it does not know (other
    layouts than channels_last, float64, gradients) torch computes.
    """
    if not _suits(x):
        return ops.group_norm_silu(x, weight, bias, groups, eps, scale_shift, add)
    scale, shift = (None, None) if scale_shift is None else map(_plain, scale_shift)
    return _run(x, weight, bias, groups, eps, silu=True, add=_plain(add), scale=scale, shift=shift)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    add: Tensor | None = None,
    alpha: float = 1.0,
    packed: dict[torch.Size, Tensor] | None = None,
) -> Tensor:
    """`ops.conv2d`; the weight is packed for a shape of x when it comes first, and kept for the last few shapes."""
    if packed is None or not _suits(x) or not onednn_knows(x.dtype):
        return ops.conv2d(x, weight, bias, padding, add, alpha)
    pads, ones = [padding, padding], [1, 1]
    own = packed.get(x.shape)
    if own is None:
        own = torch.ops.mkldnn._reorder_convolution_weight(weight, pads, ones, ones, 1, list(x.shape))
        for oldest in list(packed)[: 1 - _PACKED_SHAPES]:  # a copy: other threads may be at it too
            packed.pop(oldest, None)
        packed[x.shape] = own
    if add is not None and alpha == 1 and add.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, own, bias, pads, ones, ones, 1, "add", 1.0, None, [], ""
        )
    y = torch.ops.mkldnn._convolution_pointwise(x, own, bias, pads, ones, ones, 1, "none", [], "")
    return y if add is None else y.add_(add, alpha=alpha)


@cache
def onednn_knows(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def available() -> bool:
    """Whether the extension is there."""
    return importlib.util.find_spec("engine._native") is not None


def _suits(x: Tensor) -> bool:
    gradients = torch.is_grad_enabled() and x.requires_grad
    dense = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return dense and x.dtype in _DTYPES and x.device.type == "cpu" and not gradients


def _plain(t: Tensor | None) -> Tensor | None:
    """float32 and contiguous; asked first, because an operation that does nothing costs a microsecond too."""
    return t if t is None or (t.dtype == torch.float32 and t.is_contiguous()) else t.float().contiguous()


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    from engine import _native

    if weight.dtype != x.dtype or bias.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype}, bias {bias.dtype}; allowed: the dtype of x, {x.dtype}")
    batch, channels, height, width = x.shape
    out = torch.empty_like(x)
    _native.group_norm_cpu(
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        out.data_ptr(),
        getattr(_native.Dtype, str(x.dtype).removeprefix("torch.")),
        batch,
        height * width,
        channels,
        groups,
        eps,
        silu,
        _address(add),
        _address(scale),
        _address(shift),
        torch.get_num_threads(),
    )
    return out


NATIVE = ops.Ops("native", group_norm, group_norm_silu, conv2d)
