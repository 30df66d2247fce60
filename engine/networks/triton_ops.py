"""The networks' operations on a CUDA device: GroupNorm and what stands around it, the end of a residual block, and
convolutions of small batches in our Triton kernels; other convolutions by cuDNN; linear layers and attention by torch.
"""

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .dense import empty, output_shapes, require_dtype, require_weights, resamples, rows, rows_alike, suits
from .ops import Packed, Resample


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
    """`ops.group_norm`; other layouts, float64, gradients and huge images, which the kernels do not know, torch
    computes."""
    if not (suits(x, beside) and resamples(x, resample) and _launches(x, beside, resample)):
        return ops.group_norm(
            x, weight, bias, groups, eps,
            silu=silu, beside=beside, add=add, scale_shift=scale_shift, resample=resample, keep=keep,
        )  # fmt: skip
    from ..kernels import group_norm as kernel

    require_weights(x, beside, weight, bias)
    shape, kept_shape = output_shapes(x, beside, resample, keep)
    out, kept = empty(x, shape), None if kept_shape is None else empty(x, kept_shape)
    scale, shift = rows_alike(scale_shift)
    kernel.group_norm(
        x, weight, bias, groups, eps, out, kept,
        silu=silu, beside=beside, add=rows(add), scale=scale, shift=shift,
        taps=() if resample is None else resample.taps, up=resample is not None and resample.up,
        keep_scale=1.0 if keep is None else keep, processors=_processors(x.device),
    )  # fmt: skip
    return out, x if kept is None else kept


def _launches(x: Tensor, beside: Tensor | None, resample: Resample | None) -> bool:
    from ..kernels import group_norm as kernel

    channels = x.shape[1] + (0 if beside is None else beside.shape[1])
    pixels = x.shape[2] * x.shape[3] * (4 if resample is not None and resample.up else 1)
    return kernel.launches(x.shape[0], channels, pixels)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    add: Tensor | None = None,
    packed: Packed | None = None,
) -> Tensor:
    """`ops.conv2d`; bias and sum inside our own convolution, or in one launch after cuDNN's."""
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        add = None if add is None else add.contiguous(memory_format=torch.channels_last)
    if not suits(x, add):
        return ops.conv2d(x, weight, bias, padding, add)
    require_dtype(x, weight=weight, bias=bias, add=add)
    tile = own_tile(x, weight, padding) if x.device.type == "cuda" else None
    if tile is not None:
        return _convolve_whole(x, weight, bias, add, tile)
    y = _convolve(x, weight, padding)
    if bias is not None or add is not None:
        from ..kernels import residual as kernel

        kernel.add_residual(y, bias, add)
    return y


def own_tile(x: Tensor, weight: Tensor, padding: int) -> tuple[int, int, int, int, int] | None:
    """With which tile our own kernel computes a convolution; None for those it does not know or leaves to cuDNN
    (`kernels.conv.own_tile`). Only half precision: our float32 is cuDNN's."""
    from ..kernels import conv as kernel

    channels_out, channels_in, *size = weight.shape
    known = x.dtype in (torch.float16, torch.bfloat16) and size in ([1, 1], [3, 3]) and padding == size[0] // 2
    whole = channels_in % 16 == 0  # read by 16 bytes; the last layer's three channels may be written one by one
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    whole = whole and weight.is_contiguous(memory_format=torch.channels_last) and rows < 2**31
    return kernel.own_tile(rows, channels_out, size[0], _processors(x.device)) if known and whole else None


def _convolve_whole(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    tile: tuple[int, int, int, int, int],
) -> Tensor:
    """All in one launch."""
    from ..kernels import conv as kernel

    out = empty(x, (len(x), len(weight), x.shape[2], x.shape[3]))
    kernel.conv2d(x, weight, bias, add, out, tile)
    return out


def resample(x: Tensor, how: Resample, *, padding: int | None = None) -> Tensor:
    """`ops.resample_by_two` where it stands alone, by cuDNN as `_convolve` asks for it."""
    if x.device.type != "cuda" or not suits(x):
        return ops.resample_by_two(x, how, padding=padding)
    return ops.resample_by_two(x, how, padding=padding, halve=_halve, double=_double)


def _halve(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    pads = [padding, padding]
    return torch.cudnn_convolution(
        x, kernel, pads, [2, 2], [1, 1], x.shape[1], benchmark=False, deterministic=True, allow_tf32=False
    )  # fmt: skip


def _double(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    pads = [padding, padding]
    return torch.cudnn_convolution_transpose(
        x, kernel, pads, [0, 0], [2, 2], [1, 1], x.shape[1], benchmark=False, deterministic=True, allow_tf32=False
    )  # fmt: skip


def _convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Asked of cuDNN by its own name, float32 is float32: by torch's default, a global option, it would be TF32. The
    algorithm is what its heuristics name: what a measurement finds may differ from run to run, and so may the bits.
    """
    if x.device.type == "cuda":
        pads, ones = [padding, padding], [1, 1]
        y = torch.cudnn_convolution(
            x, weight, pads, ones, ones, 1, benchmark=False, deterministic=True, allow_tf32=False
        )  # fmt: skip
    else:
        y = F.conv2d(x, weight, padding=padding)
    return y.contiguous(memory_format=torch.channels_last)


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; one where Triton's interpreter stands for it."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def available(device: torch.device) -> bool:
    """Whether the kernels run there: NVIDIA's devices of compute capability 8.0, with Triton."""
    here = importlib.util.find_spec("triton") is not None and device.type == "cuda" and torch.version.hip is None
    return here and torch.cuda.get_device_capability(device) >= (8, 0)


TRITON = ops.Ops("triton", group_norm, conv2d, ops.linear, ops.attention, resample)
