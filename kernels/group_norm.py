"""`group_norm`: what a residual block makes of its input before a convolution, and what it keeps to add in the end.

    out  = resample(silu(shift + (1 + scale) * GroupNorm(cat(x, beside) + add)))
    keep = resample(keep_scale * cat(x, beside))                                              if there is a `keep`

All of it in channels_last, half precision or float32 in and out, float32 within. Two ways, and what they move per
element of an input of N bytes (R = 4, 1/4 or 1: outputs an input when resampled up, down or not; K = 1 if kept, or 0):

    one read     N + (1 + K) N        _slab_kernel: a program has whole groups of a sample in registers
    two reads    2 N + R (1 + K) N    _sums_kernel, then _apply_kernel: any size, resampled or not

plus 8 bytes a chunk and channel for sums written, and read by every program of _apply_kernel: a chunk is as many
multiples of 64 pixels as leave programs enough to fill the device, so that 64x64 images of a large batch have one or
two each, where 64 would be eight times the bytes of the tile that is read with them. Torch's own operations for the
same move 2 N for the concatenation, 3 N for the sum with the embedding, 3 N for the norm and its statistics, 2 N for
silu, 2 N for the residual's scale, and 2 R N for a resampling. (Counted, not measured.)

One program a group starves a GPU when the batch is small and the image large. A slab that fits on chip is at most
32 KB, which one multiprocessor reads in about the time that a second launch takes to begin. So the launcher takes one
read where slabs fit and make a program for a sixteenth of the multiprocessors (expected; bench/bench_ops.py times
both), and the split reduction, with a program for every chunk of pixels by 64 channels and then one for every 64 pixels
by 64 channels, elsewhere.

Statistics are exact for any mean: a slab subtracts its mean before it squares; the split reduction keeps mean and
squared deviation of each channel of 64 pixels, and Chan et al.'s formula adds them up, in a chunk and over all.

Tiles are pixels by channels, channels next to each other in memory: 8 halves or 4 floats a thread, 16 bytes. Groups of
a width that is no power of two (ADM's 6) lie in tiles of the next one, and move in pieces of 4 bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .advance import _round_to, _to_float32

PIXELS = 64  # of a tile of the split reduction
CHANNELS = 64
LARGEST_SLAB = 16384  # elements: 32 registers in each of 512 threads
MOST_BLOCKS = 65535  # along the second and third axis of a launch


@triton.jit
def _sum_groups(values, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """[GROUPS * GROUP] -> the sum of each group, in all of its places."""
    sums = tl.sum(tl.reshape(values, (GROUPS, GROUP)), 1)
    return tl.reshape(tl.broadcast_to(sums[:, None], (GROUPS, GROUP)), (GROUPS * GROUP,))


@triton.jit
def _channels(block, channels, GROUPS: tl.constexpr, GROUP: tl.constexpr, PER_GROUP: tl.constexpr):
    """The channels of a tile, and which of its places are channels."""
    column = tl.arange(0, GROUPS * GROUP)
    if PER_GROUP == GROUP:
        channel = block * (GROUPS * GROUP) + column
        return channel, channel < channels
    return block * PER_GROUP + column, column < PER_GROUP  # one group, in a tile that is wider


@triton.jit
def _read(x, beside, pixel, channel, inside, own, others, HAS_BESIDE: tl.constexpr):
    """Elements of cat(x, beside) of a sample, float32."""
    if not HAS_BESIDE:
        return _to_float32(tl.load(x + pixel * own + channel, mask=inside, other=0.0))
    first = inside & (channel < own)
    a = tl.load(x + pixel * own + channel, mask=first, other=0.0)
    b = tl.load(beside + pixel * others + (channel - own), mask=inside & (channel >= own), other=0.0)
    return tl.where(first, _to_float32(a), _to_float32(b))


@triton.jit
def _line(
    mean, variance, eps, weight, bias, add, scale, shift, channel, inside,
    HAS_ADD: tl.constexpr, HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """By what an element is multiplied, and what is added then; mean is that of x + add."""
    line = tl.rsqrt(variance + eps) * _to_float32(tl.load(weight + channel, mask=inside, other=0.0))
    plus = _to_float32(tl.load(bias + channel, mask=inside, other=0.0))
    if HAS_SCALE:
        gain = 1 + tl.load(scale + channel, mask=inside, other=0.0)
        line, plus = line * gain, plus * gain + tl.load(shift + channel, mask=inside, other=0.0)
    if HAS_ADD:
        mean = mean - tl.load(add + channel, mask=inside, other=0.0)
    return line, plus - mean * line


@triton.jit
def _activate(y, SILU: tl.constexpr):
    return y * tl.sigmoid(y) if SILU else y


@triton.jit
def _slab_kernel(
    x, beside, weight, bias, out, keep, add, scale, shift, pixels, channels, own, add_stride, scale_stride, eps,
    keep_scale, GROUPS: tl.constexpr, GROUP: tl.constexpr, PER_GROUP: tl.constexpr, PIXELS: tl.constexpr,
    HAS_BESIDE: tl.constexpr, HAS_ADD: tl.constexpr, HAS_SCALE: tl.constexpr, SILU: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """All pixels of GROUPS groups of a sample: read once, normalised, written. Neighbours have neighbouring groups,
    whose channels share sectors of 32 bytes."""
    sample = tl.program_id(1).to(tl.int64)
    channel, is_channel = _channels(tl.program_id(0), channels, GROUPS, GROUP, PER_GROUP)
    pixel = tl.arange(0, PIXELS)[:, None]
    inside = (pixel < pixels) & is_channel[None, :]
    others = channels - own
    value = _read(
        x + sample * pixels * own, beside + sample * pixels * others, pixel, channel[None, :], inside, own, others,
        HAS_BESIDE,
    )  # fmt: skip
    if HAS_ADD:
        seen = value + tl.load(add + sample * add_stride + channel, mask=is_channel, other=0.0)[None, :]
    else:
        seen = value
    count = tl.cast(pixels * PER_GROUP, tl.float32)
    mean = _sum_groups(tl.sum(tl.where(inside, seen, 0.0), 0), GROUPS, GROUP) / count
    apart = tl.where(inside, seen - mean[None, :], 0.0)
    variance = _sum_groups(tl.sum(apart * apart, 0), GROUPS, GROUP) / count
    line, plus = _line(
        mean, variance, eps, weight, bias, add + sample * add_stride, scale + sample * scale_stride,
        shift + sample * scale_stride, channel, is_channel, HAS_ADD, HAS_SCALE,
    )  # fmt: skip
    at = sample * pixels * channels + pixel * channels + channel[None, :]
    y = _activate(value * line[None, :] + plus[None, :], SILU)
    tl.store(out + at, _round_to(y, out.dtype.element_ty), mask=inside)
    if KEEP:
        tl.store(keep + at, _round_to(value * keep_scale, out.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    x, beside, add, sums, pixels, channels, own, add_stride, chunks, tiles,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, HAS_BESIDE: tl.constexpr, HAS_ADD: tl.constexpr,
):  # fmt: skip
    """Mean and summed squared deviation of each channel over chunks of ``tiles`` times PIXELS pixels: sums [samples,
    chunks, 2, channels]."""
    sample, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    others = channels - own
    if HAS_ADD:
        plus = tl.load(add + sample * add_stride + channel, mask=is_channel, other=0.0)
    mean = tl.zeros((CHANNELS,), tl.float32)
    squares = mean
    seen = 0.0
    for tile in range(tiles):
        first = (chunk * tiles + tile) * PIXELS
        pixel = first + tl.arange(0, PIXELS)[:, None]
        inside = (pixel < pixels) & is_channel[None, :]
        value = _read(
            x + sample * pixels * own, beside + sample * pixels * others, pixel, channel[None, :], inside, own, others,
            HAS_BESIDE,
        )  # fmt: skip
        if HAS_ADD:
            value += plus[None, :]
        count = tl.maximum(tl.minimum(PIXELS, pixels - first), 0).to(tl.float32)
        here = tl.sum(tl.where(inside, value, 0.0), 0) / tl.maximum(count, 1.0)
        apart = tl.where(inside, value - here[None, :], 0.0)
        between, share = here - mean, count / tl.maximum(seen + count, 1.0)
        squares += tl.sum(apart * apart, 0) + between * between * (seen * share)
        mean += between * share
        seen += count
    to = sums + (sample * chunks + chunk) * 2 * channels + channel
    tl.store(to, mean, mask=is_channel)
    tl.store(to + channels, squares, mask=is_channel)


@triton.jit
def _tap(to, j, FILTER: tl.constexpr, UP: tl.constexpr, TAPS: tl.constexpr):
    """What tap j of the filter reads for an output at `to`, whether it reads anything, and its weight there."""
    weight = 0.0
    for i in tl.static_range(TAPS):
        weight = tl.where(j == i, FILTER[i], weight)
    if UP:
        twice = to + (TAPS // 2 - 1) - j  # the taps fall between zeros
        return twice >> 1, (twice & 1) == 0, 2 * weight
    return 2 * to + j - (TAPS // 2 - 1), to >= 0, weight


@triton.jit
def _apply_kernel(
    x, beside, weight, bias, out, keep, add, scale, shift, sums, height, width, channels, own, add_stride, scale_stride,
    chunks, chunk, eps, keep_scale, GROUPS: tl.constexpr, GROUP: tl.constexpr, PER_GROUP: tl.constexpr,
    PIXELS: tl.constexpr, TAPS: tl.constexpr, FILTER: tl.constexpr, UP: tl.constexpr, HAS_BESIDE: tl.constexpr,
    HAS_ADD: tl.constexpr, HAS_SCALE: tl.constexpr, SILU: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """PIXELS pixels of the output, GROUPS groups: statistics added up from `sums`, then what `group_norm` says."""
    sample = tl.program_id(0).to(tl.int64)
    channel, is_channel = _channels(tl.program_id(2), channels, GROUPS, GROUP, PER_GROUP)
    pixels, others = height * width, channels - own
    of_sample = sums + sample * chunks * 2 * channels + channel
    total = tl.zeros((GROUPS * GROUP,), tl.float32)
    for c in range(chunks):
        count = tl.minimum(chunk, pixels - c * chunk).to(tl.float32)
        total += count * tl.load(of_sample + c * 2 * channels, mask=is_channel, other=0.0)
    everything = tl.cast(pixels * PER_GROUP, tl.float32)
    mean = _sum_groups(total, GROUPS, GROUP) / everything
    squares = tl.zeros((GROUPS * GROUP,), tl.float32)
    for c in range(chunks):
        count = tl.minimum(chunk, pixels - c * chunk).to(tl.float32)
        apart = tl.load(of_sample + c * 2 * channels, mask=is_channel, other=0.0) - mean
        squares += tl.load(of_sample + (c * 2 + 1) * channels, mask=is_channel, other=0.0)
        squares += tl.where(is_channel, count * apart * apart, 0.0)
    line, plus = _line(
        mean, _sum_groups(squares, GROUPS, GROUP) / everything, eps, weight, bias, add + sample * add_stride,
        scale + sample * scale_stride, shift + sample * scale_stride, channel, is_channel, HAS_ADD, HAS_SCALE,
    )  # fmt: skip
    x += sample * pixels * own
    beside += sample * pixels * others
    to = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    if TAPS == 0:
        size = pixels
        inside = (to < size)[:, None] & is_channel[None, :]
        value = _read(x, beside, to[:, None], channel[None, :], inside, own, others, HAS_BESIDE)
        y, kept = _activate(value * line[None, :] + plus[None, :], SILU), value
    else:
        wide = width * 2 if UP else width // 2
        size = pixels * 4 if UP else pixels // 4
        y = tl.zeros((PIXELS, GROUPS * GROUP), tl.float32)
        kept = y
        for tap in range(TAPS * TAPS):  # unrolled, 16 tiles at once spill 8 kB a thread
            h, reads_h, weight_h = _tap(to // wide, tap // TAPS, FILTER, UP, TAPS)
            w, reads_w, weight_w = _tap(to % wide, tap % TAPS, FILTER, UP, TAPS)
            reads = reads_h & reads_w & (h >= 0) & (h < height) & (w >= 0) & (w < width) & (to < size)
            inside = reads[:, None] & is_channel[None, :]
            value = _read(x, beside, (h * width + w)[:, None], channel[None, :], inside, own, others, HAS_BESIDE)
            made = _activate(value * line[None, :] + plus[None, :], SILU)
            y += tl.where(inside, weight_h * weight_w * made, 0.0)
            kept += weight_h * weight_w * value
    at = sample * size * channels + to[:, None] * channels + channel[None, :]
    inside = (to < size)[:, None] & is_channel[None, :]
    tl.store(out + at, _round_to(y, out.dtype.element_ty), mask=inside)
    if KEEP:
        tl.store(keep + at, _round_to(kept * keep_scale, out.dtype.element_ty), mask=inside)


def slab_of(batch: int, channels: int, groups: int, pixels: int, processors: int) -> tuple[int, int, int]:
    """A group's width in a tile, how many groups a program has, and how many elements that is, with what is masked.

    16 channels, a sector of 32 bytes in half precision, where that fits and leaves a program for each multiprocessor; 8
    elsewhere, so that at least 16 bytes lie together.
    """
    group, rows = triton.next_power_of_2(channels // groups), triton.next_power_of_2(pixels)
    if group * groups != channels:
        return group, 1, rows * group
    wide = 16 * rows <= LARGEST_SLAB and batch * triton.cdiv(channels, 16) >= processors
    slab_groups = max(1, (16 if wide else 8) // group)
    return group, slab_groups, rows * slab_groups * group


def launches(batch: int, channels: int, pixels: int) -> bool:
    """Whether tensors of so many samples, channels and pixels, the larger of input and output, can be launched for:
    offsets in a sample have 32 bits, and samples and tiles of pixels are counted along axes of a grid."""
    return batch <= MOST_BLOCKS and channels * pixels < 2**31 and triton.cdiv(pixels, PIXELS) <= MOST_BLOCKS


def reads_once(batch: int, channels: int, groups: int, pixels: int, processors: int) -> bool:
    """Whether a norm is computed in one read: its slabs fit, and there are not too few of them."""
    _, slab_groups, slab = slab_of(batch, channels, groups, pixels, processors)
    return slab <= LARGEST_SLAB and 16 * batch * triton.cdiv(groups, slab_groups) >= processors


def _tiles(every: int, programs: int, processors: int) -> int:
    """Of a chunk: as many of a sample's ``every`` as leave each processor two programs. programs: with one chunk."""
    chunks = min(every, max(1, triton.cdiv(2 * processors, programs)))
    return triton.cdiv(every, chunks)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    out: Tensor,
    keep: Tensor | None,
    *,
    silu: bool,
    beside: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    taps: tuple[float, ...],
    up: bool,
    keep_scale: float,
    processors: int,
    once: bool | None = None,
) -> None:
    """One launch, or two; checks nothing (`engine.networks.triton_ops` does).

    x, beside, out, keep [B, C, H, W] dense in channels_last and of one dtype, weight and bias [C] of it; add, scale and
    shift float32 [B, C] with dense rows, those of scale and shift as far apart. taps: of the resampling filter, () for
    none. processors: programs that fill the device. once: whether to read once, where slabs fit; None for the rule
    (`reads_once`). The sizes must be such as `launches` allows.
    """
    batch, own, height, width = x.shape
    channels, pixels = out.shape[1], height * width
    per_group = channels // groups
    group, slab_groups, slab = slab_of(batch, channels, groups, pixels, processors)
    norm = (weight, bias, out, out if keep is None else keep, *(x if t is None else t for t in (add, scale, shift)))
    strides = (0 if add is None else add.stride(0), 0 if scale is None else scale.stride(0))
    there = {"HAS_BESIDE": beside is not None, "HAS_ADD": add is not None}
    done = {"HAS_SCALE": scale is not None, "SILU": silu, "KEEP": keep is not None}
    inputs = (x, x if beside is None else beside)
    with torch.cuda.device_of(x):
        if not taps and (reads_once(batch, channels, groups, pixels, processors) if once is None else once):
            _slab_kernel[(triton.cdiv(groups, slab_groups), batch)](
                *inputs, *norm, pixels, channels, own, *strides, eps, keep_scale,
                GROUPS=slab_groups, GROUP=group, PER_GROUP=per_group, PIXELS=triton.next_power_of_2(pixels),
                **there, **done, num_warps=max(1, min(16, slab // 1024)), enable_fp_fusion=True,
            )  # fmt: skip
            return
        tiles = _tiles(triton.cdiv(pixels, PIXELS), batch * triton.cdiv(channels, CHANNELS), processors)
        chunks = triton.cdiv(pixels, PIXELS * tiles)
        sums = torch.empty(batch, chunks, 2, channels, dtype=torch.float32, device=x.device)
        _sums_kernel[(batch, chunks, triton.cdiv(channels, CHANNELS))](
            *inputs, norm[4], sums, pixels, channels, own, strides[0], chunks, tiles,
            PIXELS=PIXELS, CHANNELS=CHANNELS, **there, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        tile_groups = max(1, CHANNELS // group) if group == per_group else 1
        _apply_kernel[(batch, triton.cdiv(out[0, 0].numel(), PIXELS), triton.cdiv(groups, tile_groups))](
            *inputs, *norm, sums, height, width, channels, own, *strides, chunks, tiles * PIXELS, eps, keep_scale,
            GROUPS=tile_groups, GROUP=group, PER_GROUP=per_group, PIXELS=PIXELS,
            TAPS=len(taps), FILTER=taps, UP=up, **there, **done, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
