"""Our own convolutions on a CPU (csrc/winograd_op.h), 3x3 by Winograd's minimal filtering, and 1x1: which of them, and
their weights."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_PRODUCTS_WORTH_A_CALL = 1_000_000  # of a single image
_PANEL = 32  # kPanel of csrc/winograd_op.h


def tile_for(x: Tensor, weight: Tensor, padding: int) -> int | None:
    """m of the m by m outputs of a tile; None for a convolution that is left to oneDNN (figures: bench/bench_convs.py).

    3x3: m = 4 takes a quarter of the products and 0.6 of the time of m = 2. Half precision computes in float32 too, and
    loses nothing by it. In float32 its error is 1.5 times that of torch's convolution for 64 inputs, 1.1 times for 128
    and 0.8 for 256 (of 8x8 images torch's own is sometimes a third): the others take m = 2, with 0.3 to 0.9 of torch's
    error. Images of 4x4 are too small for m = 4.

    1x1, m = 1: as fast as oneDNN, without the 20 us that a call of it costs.

    oneDNN keeps three kinds. With AMX, all in bfloat16. With AMD's bfloat16 products, of twice float32's speed, 1x1 so
    large that it matters. And channels in other numbers than multiples of 16, in dtypes that it knows: torch's own
    convolution takes ten times as long for three channels as our loops for 128.
    """
    outputs, inputs, *kernel = weight.shape
    pixels = x.shape[2] * x.shape[3]
    if (*kernel, padding) not in ((1, 1, 0), (3, 3, 1)):
        return None
    if (inputs % 16 or outputs % 16) and onednn_knows(x.dtype):
        return None
    if x.dtype == torch.bfloat16 and has_amx():
        return None
    if kernel == [1, 1]:
        large = pixels * inputs * outputs > _PRODUCTS_WORTH_A_CALL
        return None if large and x.dtype == torch.bfloat16 and _has_fast_halves() else 1
    exact_enough = inputs >= 128 and pixels >= 256 if x.dtype == torch.float32 else pixels >= 64
    return 4 if exact_enough else 2


def pack(weight: Tensor) -> Tensor:
    """weight [outputs, inputs, k, k] as the loops read it, [outputs / 32, inputs, k * k, 32], zeros behind the last
    output and, up to a multiple of 16, the last input; they transform it."""
    outputs, inputs = weight.shape[:2]
    taps = F.pad(weight.flatten(2), (0, 0, 0, -inputs % 16, 0, -outputs % _PANEL))
    return taps.unflatten(0, (-1, _PANEL)).permute(0, 2, 3, 1).contiguous()


@cache
def onednn_knows(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


@cache
def has_amx() -> bool:
    """Whether AMX makes oneDNN's and torch's products of bfloat16 faster than ours."""
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def _has_fast_halves() -> bool:
    """Whether products of bfloat16 are faster than float32's: AMD's take half the time, Intel's as long or longer."""
    from engine import _native

    return bool(torch.cpu._is_avx512_bf16_supported()) and _native.is_amd()
