"""`add_residual`: y + bias + past, in place of y; a residual block's end, after a convolution without bias, or its bias
alone.

Torch launches one kernel for the bias of a convolution and one for the sum, and moves 5 N bytes per element of N bytes;
this is one launch that reads y and past and writes y: 3 N. (Counted, not measured.) The scale of a residual block is in
the weights, and in `past` already, which `group_norm` kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .advance import _round_to, _to_float32

ELEMENTS = 1024  # a program


@triton.jit
def _add_residual_kernel(
    y, bias, past, elements, channels, ELEMENTS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PAST: tl.constexpr
):
    """Elements in the order of channels_last, so that an element's channel is its place modulo their number."""
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < elements
    total = _to_float32(tl.load(y + at, mask=inside, other=0.0))
    if HAS_PAST:
        total += _to_float32(tl.load(past + at, mask=inside, other=0.0))
    if HAS_BIAS:
        total += _to_float32(tl.load(bias + at % channels, mask=inside, other=0.0))
    tl.store(y + at, _round_to(total, y.dtype.element_ty), mask=inside)


def add_residual(y: Tensor, bias: Tensor | None, past: Tensor | None) -> None:
    """One launch; checks nothing. y and past [B, C, H, W] dense in channels_last, bias [C], of one dtype."""
    with torch.cuda.device_of(y):
        _add_residual_kernel[(triton.cdiv(y.numel(), ELEMENTS),)](
            y, y if bias is None else bias, y if past is None else past, y.numel(), y.shape[1],
            ELEMENTS=ELEMENTS, HAS_BIAS=bias is not None, HAS_PAST=past is not None, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
