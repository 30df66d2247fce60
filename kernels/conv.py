"""`conv2d`: a convolution of 3x3 or 1x1 pixels with its bias and the sum that follows, in one launch:

    out = conv(x, weight) + bias + past                                        half precision in and out, float32 within

It is a matrix product of M = B H W pixels by N = channels_out, over K = kernel^2 channels_in, whose left side is read
from x where it lies (channels_last), never written out. A program makes BM x BN outputs and reads BM + BN numbers for
every of the K, so the tiles decide how often x and the weight are read: (1 / BN + 1 / BM) M N K numbers in all, most of
them from L2. Device memory sees x, the weight and past once and out once: 2 (channels_in + 2 channels_out) bytes a
pixel, where cuDNN and one more launch for bias and sum move 2 (channels_in + 4 channels_out). (Counted, not measured.)

Why not cuDNN's: with a tile of 128 x 128 an image of 32 x 32 pixels and 256 channels is 16 programs for a device's 132
multiprocessors, and of 16 x 16 pixels 4. `tile_for` picks a tile that keeps enough of them busy. Nothing is split over
K, so the sum over K has one order, whatever the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .advance import _round_to, _to_float32

Tile = tuple[int, int, int, int, int]  # BM, BN, BK, warps, stages
# The largest first.
TILES: tuple[Tile, ...] = (
    (128, 128, 64, 8, 3),
    (128, 64, 64, 4, 4),
    (64, 64, 128, 4, 3),
    (64, 32, 64, 4, 5),
    (32, 32, 128, 4, 4),
    (16, 32, 128, 4, 4),
)


@triton.jit
def _conv_kernel(
    x, weight, bias, past, out, rows, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS_IN: tl.constexpr,
    CHANNELS_OUT: tl.constexpr, KERNEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_PAST: tl.constexpr,
):  # fmt: skip
    """BM pixels by BN channels of the output. Programs that read the same pixels have neighbouring numbers.

    The loop competes with the tensor cores for issue slots. So addresses are made before it and moved by one number in
    it, which taps of a pixel lie in the image is nine bits, and sizes are constants, at the price of a compilation for
    each shape of a layer: 114 instructions a step of the largest tile instead of 212, and 128 registers, of which two
    programs fit a multiprocessor, instead of 148 (counted in SASS for sm_90).
    """
    columns = tl.cdiv(CHANNELS_OUT, BN)
    row = (tl.program_id(0) // columns) * BM + tl.arange(0, BM)
    column = (tl.program_id(0) % columns) * BN + tl.arange(0, BN)
    is_row, is_column = row < rows, column < CHANNELS_OUT
    pixel = row % (HEIGHT * WIDTH)
    h, w = pixel // WIDTH, pixel % WIDTH
    inside = tl.zeros((BM,), tl.int32)
    for t in tl.static_range(KERNEL * KERNEL):
        y, z = h + (t // KERNEL - KERNEL // 2), w + (t % KERNEL - KERNEL // 2)
        inside |= (is_row & (y >= 0) & (y < HEIGHT) & (z >= 0) & (z < WIDTH)).to(tl.int32) << t
    channel = tl.arange(0, BK)
    pixels = x + row.to(tl.int64)[:, None] * CHANNELS_IN + channel[None, :]
    weights = weight + column[None, :] * (KERNEL * KERNEL * CHANNELS_IN) + channel[:, None]
    SLICES: tl.constexpr = (CHANNELS_IN + BK - 1) // BK
    total = tl.zeros((BM, BN), tl.float32)
    for step in range(KERNEL * KERNEL * SLICES):  # one loop, so that loads run ahead across taps
        tap, first = step // SLICES, (step % SLICES) * BK
        moved = (tap // KERNEL - KERNEL // 2) * WIDTH + tap % KERNEL - KERNEL // 2
        of_x, of_weight = (((inside >> tap) & 1) != 0)[:, None], is_column[None, :]
        if CHANNELS_IN % BK != 0:
            is_channel = first + channel < CHANNELS_IN
            of_x, of_weight = of_x & is_channel[None, :], of_weight & is_channel[:, None]
        a = tl.load(pixels + (moved * CHANNELS_IN + first), mask=of_x, other=0.0)
        b = tl.load(weights + (tap * CHANNELS_IN + first), mask=of_weight, other=0.0)
        total = tl.dot(a, b, total)
    if HAS_BIAS:
        total += _to_float32(tl.load(bias + column, mask=is_column, other=0.0))[None, :]
    to = row.to(tl.int64)[:, None] * CHANNELS_OUT + column[None, :]
    there = is_row[:, None] & is_column[None, :]
    if HAS_PAST:
        total += _to_float32(tl.load(past + to, mask=there, other=0.0))
    tl.store(out + to, _round_to(total, out.dtype.element_ty), mask=there)


def programs(tile: Tile, rows: int, channels_out: int) -> int:
    """How many of them there are."""
    return triton.cdiv(rows, tile[0]) * triton.cdiv(channels_out, tile[1])


def tile_for(rows: int, channels_out: int, processors: int) -> Tile:
    """The largest tile that keeps a third of the multiprocessors busy; the smallest where none does.

    A third: half the tile means twice the reading, and where the numbers come from L2 that costs more than idle
    neighbours (estimated; bench/bench_ops.py times every tile).
    """
    return next((tile for tile in TILES if 3 * programs(tile, rows, channels_out) >= processors), TILES[-1])


def own_tile(rows: int, channels_out: int, kernel: int, processors: int) -> Tile | None:
    """The tile of convolutions that pay here, with bias and sum inside; None for those to leave to cuDNN.

    1x1 pixels, which are bound by memory; and those that tiles of 128 x 128, cuDNN's for the most part, would leave
    multiprocessors idle with. (Expected, not measured yet; bench/bench_ops.py times both sides.)
    """
    pays = kernel == 1 or programs(TILES[0], rows, channels_out) < processors
    return tile_for(rows, channels_out, processors) if pays else None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, out: Tensor, tile: Tile) -> None:
    """One launch; checks nothing (`engine.networks.triton_ops` does).

    x [B, channels_in, H, W], past and out [B, channels_out, H, W] and weight [channels_out, channels_in, k, k] dense in
    channels_last, bias [channels_out], of one half-precision dtype; k 1 or 3, padded to the same size. Fewer than 2^31
    pixels.
    """
    batch, channels_in, height, width = x.shape
    rows, channels_out = batch * height * width, out.shape[1]
    bm, bn, bk, warps, stages = tile
    with torch.cuda.device_of(x):
        _conv_kernel[(programs(tile, rows, channels_out),)](
            x, weight, x if bias is None else bias, x if past is None else past, out,
            rows, HEIGHT=height, WIDTH=width, CHANNELS_IN=channels_in, CHANNELS_OUT=channels_out,
            KERNEL=weight.shape[2], BM=bm, BN=bn, BK=bk, HAS_BIAS=bias is not None, HAS_PAST=past is not None,
            num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
