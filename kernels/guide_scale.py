"""`guide_scale`: by how much each sample's guided F is rescaled; the launch before `advance` in plans that rescale.

    rescale * std(F) / std(guide_F * F + guide_G * G) + 1 - rescale            in float64, a factor a sample

The standard deviations are sums over a sample, and their order is part of the contract (`engine.reference`): 512 lanes,
each over every 512th element, then neighbours in pairs. One program does a sample, a lane a thread or two; it reads F
and G once, N bytes an element each, and writes 8 bytes a sample.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .advance import BEGIN, Strides, _guide, _offset, _to_float32

LANES = 512  # 2^9


@triton.jit
def _lane_sum(a, LANES: tl.constexpr, LOG2: tl.constexpr):
    """[LANES = 2^LOG2] -> [1]: neighbours in pairs, then pairs of their sums, until one is left."""
    for i in tl.static_range(LOG2):
        left, right = tl.split(tl.reshape(a, (LANES // (2 << i), 2)))
        a = left + right
    return a


@triton.jit
def _variation(total, squares, elements, LANES: tl.constexpr):
    """Elements times their variance: sum of squares - square of sum / elements."""
    s = _lane_sum(total, LANES, 9)
    return _lane_sum(squares, LANES, 9) - s * s / tl.cast(elements, tl.float64)


@triton.jit(do_not_specialize=["k", "rows"])
def _guide_scale_kernel(
    F_ptr, F_sample, F_channel, F_pixel, G_ptr, G_sample, G_channel, G_pixel,
    guide_scale_ptr, table_ptr, base_row_ptr, k, rows, elements, pixels,
    COLUMNS: tl.constexpr, HAS_G: tl.constexpr, F_FLAT: tl.constexpr, G_FLAT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The scale of one sample a program (`engine.reference.guide_scale`); rows that do not rescale leave theirs."""
    sample = tl.program_id(0).to(tl.int64)
    index = tl.load(base_row_ptr + sample) + k
    row = table_ptr + tl.where((index < 0) | (index >= rows), 0, index) * len(COLUMNS)
    rescale = tl.load(row + COLUMNS.rescale)
    if (index < 0) | (index >= rows) | (tl.load(row + COLUMNS.op) == BEGIN) | (rescale == 0):
        return
    if not HAS_G and tl.load(row + COLUMNS.guide_G) != 0:
        return
    total, squares = tl.zeros((LANES,), tl.float64), tl.zeros((LANES,), tl.float64)
    guided_total, guided_squares = tl.zeros((LANES,), tl.float64), tl.zeros((LANES,), tl.float64)
    for start in range(0, elements, LANES):
        e = start + tl.arange(0, LANES)
        inside = e < elements
        offset = _offset(e, e, pixels, F_channel, F_pixel, F_FLAT, False)
        F = _to_float32(tl.load(F_ptr + sample * F_sample + offset, mask=inside, other=0.0))
        seen = F
        if HAS_G:
            offset = _offset(e, e, pixels, G_channel, G_pixel, G_FLAT, False)
            seen = tl.where(inside, _guide(F, row, COLUMNS, G_ptr + sample * G_sample + offset, e, elements), 0.0)
        plain, seen = F.to(tl.float64), seen.to(tl.float64)
        total, squares = total + plain, squares + plain * plain
        guided_total, guided_squares = guided_total + seen, guided_squares + seen * seen
    wanted = _variation(total, squares, elements, LANES)
    found = _variation(guided_total, guided_squares, elements, LANES)
    ratio = tl.where(found > 0, tl.sqrt(tl.where(wanted > 0, wanted, 0.0) / found), 1.0)
    tl.store(guide_scale_ptr + sample + tl.arange(0, 1), rescale * ratio + (1 - rescale))


def guide_scale(
    F: Tensor,
    F_strides: Strides,
    G: Tensor | None,
    G_strides: Strides,
    scale: Tensor,
    x: Tensor,
    table: Tensor,
    base_row: Tensor,
    k: int,
    columns: tuple[int, ...],
) -> None:
    """One launch over the whole batch, into scale, float64 [B]; the other arguments as `advance` has them."""
    with torch.cuda.device_of(x):
        _guide_scale_kernel[(len(x),)](
            F, *F_strides[:3], F if G is None else G, *G_strides[:3],
            scale, table, base_row, k, len(table), x[0].numel(), x[0, 0].numel(),
            COLUMNS=columns, HAS_G=G is not None, F_FLAT=F_strides.flat, G_FLAT=G_strides.flat, LANES=LANES,
            num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
