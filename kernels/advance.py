"""`advance`: from a network's output F to the next network input, in one launch, for any solver.

Sample b of a batch reads row ``base_row[b] + k`` of a float64 table and does what its opcode says. Per element, in
this order, where x_eval is the point at which F was evaluated and every step is one rounded IEEE operation:

    F      = guide_F * F + guide_G * G, then F * guide_scale      if guide_G, if rescale (guide_scale.py); float32
    D      = c_skip * float32(x_eval / s) + c_out * F                     float32; all else in the dtype of x
    D      = known, where that is a number                                if there is `known`
    slope  = (slope_x * x_eval - slope_D * D) / slope_t
    BEGIN    x = begin_scale * latents
    EULER    x = x + h * slope
    PREDICT  slot 0 = slope; the next evaluation is at x + h * slope, x stays
    CORRECT  x = x + h * (w_0 * slot 0 + w_1 * slope), slope at x_eval = x + h_predict * slot 0
    LINEAR   x = x_from_x * x + x_from_D * D + x_from_0 * slot 0 + ..., without the terms whose coefficient is 0; the
             sums of keep_from_* and store_from_* go to the slots keep_slot and store_slot (-1: none)
    x      = ratio * x + std * eps                                        not after PREDICT; eps only if std is not 0
    net_in = c_in * float32(x' / s_next), rounded to the network's dtype  if `evaluate`

Noise comes from Philox in registers, or from a buffer. Bytes moved per element for a state of S bytes (8 or 4), a
network of N (4 or 2), both halves of the network counted (F is read, net_in written):

    op       read           written        S = 8, N = 2
    BEGIN    0              S + N          10              (+ 4 or 8 where the latents come from a buffer)
    EULER    S + N          S + N          20
    PREDICT  S + N          S + N          20              (the slope is written, x is not)
    CORRECT  2 S + N        S + N          28
    LINEAR   S + N + r S    S + N + w S    20 + 8 (r + w)  (r = 0 to 4 slots read, w = 0 to 2 written)

+ 4 or 8 where eps comes from a buffer, N for G, 4 for known, N for a second copy of net_in; - N in a plan's last row,
which has no network input to write. A normal takes
some 60 instructions and a float64 division some 20: the kernel should be bound by memory (counted, not measured).

Tile. A program owns GROUPS groups of WIDTH consecutive elements of one sample, one group a thread: 16 bytes of x, 4
float32 or 2 float64, so x and the slots move in the widest pieces the hardware has, each written by the thread that
read it. Four elements share a Philox counter. A float32 group is such a quad; of a float64 quad two threads each run
Philox and their own half of Box-Muller, which costs less than registers for 4 float64 or a trip through shared memory.

Layout. F and net_in are addressed by (sample, channel, pixel) strides. Contiguous ones move in 4- or 8-byte pieces a
thread, 128 or 256 in a row a warp. channels_last ones do not: a program walks one channel, so a warp touches all
sectors of its pixels and uses 1/C of each. The programs of the other channels run at the same time and find these
sectors in L2: the price should be L2 traffic, not memory traffic, and quads stay quads in both layouts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .philox import normal_groups

ELEMENTS = 512  # a program: small, because images of 28 x 28 fill 1.53 programs and the rest of the second is wasted

BEGIN, EULER, PREDICT, CORRECT, LINEAR = (tl.constexpr(op) for op in range(5))
# Decided once, as `triton.jit` does. Its interpreter truncates float32 to bfloat16 and misreads bfloat16 subnormals.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _divide(x, s):
    """x / s correctly rounded. Dividing by 1 changes nothing, and s is 1 for sigma(t) = t: skip it there."""
    if s != 1.0:
        x = tl.div_rn(x, s) if x.dtype == tl.float32 else x / s  # float32 `/` is 2 ulp off, and div_rn knows no float64
    return x


@triton.jit
def _to_float32(F):
    if INTERPRETED and F.dtype == tl.bfloat16:
        return (F.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return F.to(tl.float32)


@triton.jit
def _round_to(y, dtype: tl.constexpr):
    """float32 y to the network's dtype, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = y.to(tl.uint32, bitcast=True)
        bits = tl.where(y != y, 0x7FC00000, bits + 0x7FFF + ((bits >> 16) & 1))
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return y.to(dtype)


@triton.jit
def _offset(groups, e, pixels, channel_stride, pixel_stride, FLAT: tl.constexpr, WHOLE: tl.constexpr):
    """Where element e of a sample lies in F or net_in, relative to the sample's first element.

    FLAT: as in x. WHOLE: no group spans two channels, so that one division serves a group.
    """
    if FLAT:
        return e
    first = groups[:, None] * e.shape[1] if WHOLE else e
    channel = (first.to(tl.uint32) // tl.cast(pixels, tl.uint32)).to(tl.int32)
    return channel * channel_stride + (e - channel * pixels) * pixel_stride


@triton.jit
def _add(total, row, column: tl.constexpr, term):
    """total + coefficient * term, or total itself when the coefficient is 0."""
    coefficient = tl.load(row + column)
    return tl.where(coefficient != 0, total + coefficient.to(term.dtype) * term, total)


@triton.jit
def _sum(row, FIRST: tl.constexpr, SLOTS: tl.constexpr, x, D, slot_0, slot_1, slot_2, slot_3):
    """Sum of coefficient * term from left to right over x, D and the first SLOTS slots, coefficients from FIRST on.

    It starts at -0.0, to which adding any number is exact, zeros included; a sum without terms is +0.0.
    """
    any_term = tl.load(row + FIRST) != 0
    for j in tl.static_range(1, 2 + SLOTS):
        any_term |= tl.load(row + FIRST + j) != 0
    # -0.0 by its bit pattern: Triton 3.6 compiles the literal as +0.0.
    total = tl.where(any_term, -0x80000000, 0).to(tl.float32, bitcast=True).to(x.dtype)
    total = _add(total, row, FIRST, x)
    total = _add(total, row, FIRST + 1, D)
    if SLOTS > 0:
        total = _add(total, row, FIRST + 2, slot_0)
        total = _add(total, row, FIRST + 3, slot_1)
        total = _add(total, row, FIRST + 4, slot_2)
        total = _add(total, row, FIRST + 5, slot_3)
    return total


@triton.jit
def _load_if(condition, state, e, elements):
    """Elements e of a sample's state or slot; zeros, without touching memory, where the scalar condition is false."""
    return tl.load(state + e, mask=e < tl.where(condition, elements, 0), other=0.0)


@triton.jit
def _read_slot(slots, row, j: tl.constexpr, COLUMNS: tl.constexpr, slot_stride, e, elements):
    """Slot j, if x or the kept slot needs it."""
    kept = (tl.load(row + COLUMNS.keep_slot) >= 0) & (tl.load(row + COLUMNS.keep_from_0 + j) != 0)
    needed = kept | (tl.load(row + COLUMNS.x_from_0 + j) != 0)
    return _load_if(needed, slots + j * slot_stride, e, elements)


@triton.jit
def _linear(row, slots, slot_stride, x, D, e, elements, COLUMNS: tl.constexpr):
    """LINEAR: returns the next x, writes the slots. All sums read the values from before the row."""
    s_0 = _read_slot(slots, row, 0, COLUMNS, slot_stride, e, elements)
    s_1 = _read_slot(slots, row, 1, COLUMNS, slot_stride, e, elements)
    s_2 = _read_slot(slots, row, 2, COLUMNS, slot_stride, e, elements)
    s_3 = _read_slot(slots, row, 3, COLUMNS, slot_stride, e, elements)
    x_next = _sum(row, COLUMNS.x_from_x, 4, x, D, s_0, s_1, s_2, s_3)
    tl.debug_barrier()  # all read before any is written, should the compiler ever give read and write other threads
    keep = tl.load(row + COLUMNS.keep_slot).to(tl.int64)
    if keep >= 0:
        kept = _sum(row, COLUMNS.keep_from_x, 4, x, D, s_0, s_1, s_2, s_3)
        tl.store(slots + keep * slot_stride + e, kept, mask=e < elements)
    store = tl.load(row + COLUMNS.store_slot).to(tl.int64)
    if store >= 0:
        stored = _sum(row, COLUMNS.store_from_x, 0, x, D, s_0, s_1, s_2, s_3)
        tl.store(slots + store * slot_stride + e, stored, mask=e < elements)
    return x_next


@triton.jit
def _touches_slot(row, j: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether a LINEAR row reads or writes slot j."""
    read = (tl.load(row + COLUMNS.x_from_0 + j) != 0) | (tl.load(row + COLUMNS.keep_from_0 + j) != 0)
    return read | (tl.load(row + COLUMNS.keep_slot) == j) | (tl.load(row + COLUMNS.store_slot) == j)


@triton.jit
def _cannot(
    row, op, slot_count, draws, COLUMNS: tl.constexpr, HAS_F: tl.constexpr, HAS_G: tl.constexpr,
    RESCALES: tl.constexpr, SEEDED: tl.constexpr, HAS_LATENTS: tl.constexpr, HAS_EPS: tl.constexpr,
):  # fmt: skip
    """Whether the row asks for something the call lacks: an op there is none of, F, G, noise, a draw or a slot."""
    draw = tl.load(row + COLUMNS.draw)
    noisy = (op != PREDICT) & (tl.load(row + COLUMNS.std) != 0)
    cannot = (op < BEGIN) | (op > LINEAR)
    if not HAS_F:
        cannot |= op != BEGIN
    if not HAS_G:
        cannot |= (op != BEGIN) & (tl.load(row + COLUMNS.guide_G) != 0)
    if not RESCALES:
        cannot |= (op != BEGIN) & (tl.load(row + COLUMNS.rescale) != 0)
    if not SEEDED and not HAS_LATENTS:
        cannot |= op == BEGIN
    if HAS_EPS:
        cannot |= noisy & ((draw < 0) | (draw >= draws))
    else:
        cannot |= noisy & (draw < 0)
        if not SEEDED:
            cannot |= noisy
    cannot |= ((op == PREDICT) | (op == CORRECT)) & (slot_count < 1)
    highest = tl.maximum(tl.load(row + COLUMNS.keep_slot), tl.load(row + COLUMNS.store_slot))
    for j in tl.static_range(4):
        highest = tl.maximum(highest, tl.where(_touches_slot(row, j, COLUMNS), j, -1))
    return cannot | ((op == LINEAR) & (highest >= slot_count))


@triton.jit
def _noise(
    buffer, seed, draw, groups, e, inside, dtype: tl.constexpr, FROM_BUFFER: tl.constexpr, SEEDED: tl.constexpr
):  # fmt: skip
    """Unit noise: from a buffer, else from the seed."""
    if FROM_BUFFER:
        return tl.load(buffer + e, mask=inside, other=0.0).to(dtype)
    if SEEDED:
        return normal_groups(seed, draw, groups, e.shape[1]).to(dtype)
    return tl.zeros(e.shape, dtype)  # compiled, never run: `_cannot`


@triton.jit
def _guide(F, row, COLUMNS: tl.constexpr, G_ptr, e, elements):
    """guide_F * F + guide_G * G, or F itself, with G unread, where the row is not guided."""
    from_F, from_G = tl.load(row + COLUMNS.guide_F).to(tl.float32), tl.load(row + COLUMNS.guide_G)
    guided = from_G != 0
    G = _to_float32(tl.load(G_ptr, mask=e < tl.where(guided, elements, 0), other=0.0))
    return tl.where(guided, from_F * F + from_G.to(tl.float32) * G, F)


@triton.jit(do_not_specialize=["k", "rows", "slot_count", "draws", "blocks"])
def _advance_kernel(
    F_ptr, F_sample, F_channel, F_pixel,
    G_ptr, G_sample, G_channel, G_pixel, guide_scale_ptr, known_ptr,
    x_ptr, slots_ptr, slot_stride,
    net_in_ptr, net_sample, net_channel, net_pixel,
    c_noise_ptr, table_ptr, base_row_ptr, bad_row_ptr,
    seeds_ptr, latents_ptr, eps_ptr,
    k, rows, slot_count, draws, elements, pixels, blocks,
    COLUMNS: tl.constexpr, HAS_F: tl.constexpr, F_FLAT: tl.constexpr, NET_FLAT: tl.constexpr, WHOLE: tl.constexpr,
    SEEDED: tl.constexpr, HAS_LATENTS: tl.constexpr, HAS_EPS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    HAS_G: tl.constexpr, G_FLAT: tl.constexpr, RESCALES: tl.constexpr, HAS_KNOWN: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Program (sample, block): GROUPS * WIDTH elements of one sample. Strides in elements."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    groups = block * GROUPS + tl.arange(0, GROUPS)
    e = groups[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]  # element of the sample, 32 bits; of the batch, 64
    inside = e < elements
    index = tl.load(base_row_ptr + sample) + k
    outside = (index < 0) | (index >= rows)
    row = table_ptr + tl.where(outside, 0, index) * len(COLUMNS)
    op = tl.load(row + COLUMNS.op).to(tl.int32)
    if outside | _cannot(row, op, slot_count, draws, COLUMNS, HAS_F, HAS_G, RESCALES, SEEDED, HAS_LATENTS, HAS_EPS):
        if tl.load(bad_row_ptr + sample) < 0:  # reported, not advanced
            tl.store(bad_row_ptr + sample, tl.maximum(index, 0))
        return
    first = sample * elements
    slot_stride = tl.cast(slot_stride, tl.int64)
    x_ptr += first
    slots_ptr += first
    seed = tl.load(seeds_ptr + sample) if SEEDED else 0

    if op == BEGIN:
        draw = tl.full([], 0, tl.int64)
        latents = _noise(latents_ptr + first, seed, draw, groups, e, inside, dtype, HAS_LATENTS, SEEDED)
        x_next = latents * tl.load(row + COLUMNS.begin_scale).to(dtype)
    else:
        x = tl.load(x_ptr + e, mask=inside, other=0.0)
        correct = op == CORRECT
        d_0 = _load_if(correct, slots_ptr, e, elements)
        x_eval = tl.where(correct, x + tl.load(row + COLUMNS.h_predict).to(dtype) * d_0, x)

        if HAS_F:
            offset = _offset(groups, e, pixels, F_channel, F_pixel, F_FLAT, WHOLE)
            F = _to_float32(tl.load(F_ptr + sample * F_sample + offset, mask=inside, other=0.0))
        else:
            F = tl.zeros(e.shape, tl.float32)  # compiled, never run: `_cannot`
        if HAS_G:
            offset = _offset(groups, e, pixels, G_channel, G_pixel, G_FLAT, WHOLE)
            F = _guide(F, row, COLUMNS, G_ptr + sample * G_sample + offset, e, elements)
        if RESCALES:
            scale = tl.load(guide_scale_ptr + sample).to(tl.float32)
            F = tl.where(tl.load(row + COLUMNS.rescale) != 0, F * scale, F)
        x_scaled = _divide(x_eval, tl.load(row + COLUMNS.s).to(dtype)).to(tl.float32)
        c_skip, c_out = tl.load(row + COLUMNS.c_skip).to(tl.float32), tl.load(row + COLUMNS.c_out).to(tl.float32)
        D = (c_skip * x_scaled + c_out * F).to(dtype)
        if HAS_KNOWN:
            known = tl.load(known_ptr + first + e, mask=inside, other=float("nan"))
            D = tl.where(known == known, known.to(dtype), D)

        if op == LINEAR:
            x_next = _linear(row, slots_ptr, slot_stride, x, D, e, elements, COLUMNS)
        else:
            slope_x, slope_D = tl.load(row + COLUMNS.slope_x).to(dtype), tl.load(row + COLUMNS.slope_D).to(dtype)
            slope = _divide(slope_x * x_eval - slope_D * D, tl.load(row + COLUMNS.slope_t).to(dtype))
            if op == PREDICT:
                tl.store(slots_ptr + e, slope, mask=inside)
            w_0, w_1 = tl.load(row + COLUMNS.w_0).to(dtype), tl.load(row + COLUMNS.w_1).to(dtype)
            slope = tl.where(correct, w_0 * d_0 + w_1 * slope, slope)
            x_next = x + tl.load(row + COLUMNS.h).to(dtype) * slope

    if op != PREDICT:
        x_next = tl.load(row + COLUMNS.ratio).to(dtype) * x_next
        std = tl.load(row + COLUMNS.std)
        if std != 0:
            draw = tl.load(row + COLUMNS.draw).to(tl.int64)
            eps = _noise(
                eps_ptr + draw * slot_stride + first, seed, draw + 1, groups, e, inside, dtype, HAS_EPS, SEEDED
            )
            x_next = x_next + std.to(dtype) * eps
        tl.store(x_ptr + e, x_next, mask=inside)

    if tl.load(row + COLUMNS.evaluate) != 0:
        x_scaled = _divide(x_next, tl.load(row + COLUMNS.s_next).to(dtype)).to(tl.float32)
        net_in = _round_to(tl.load(row + COLUMNS.c_in).to(tl.float32) * x_scaled, net_in_ptr.dtype.element_ty)
        offset = _offset(groups, e, pixels, net_channel, net_pixel, NET_FLAT, WHOLE)
        samples = (tl.num_programs(0) // blocks).to(tl.int64)
        for copy in tl.static_range(COPIES):
            at = sample + copy * samples
            tl.store(net_in_ptr + at * net_sample + offset, net_in, mask=inside)
            if block == 0:
                tl.store(c_noise_ptr + at, tl.load(row + COLUMNS.c_noise).to(tl.float32))

    if tl.load(bad_row_ptr + sample) < 0:  # the programs of a sample may race, but they all write the same row
        finite = (e >= elements) | (tl.abs(x_next) < float("inf"))
        broken = tl.min(finite.to(tl.int32), axis=1) == 0
        tl.store(bad_row_ptr + sample + groups * 0, groups.to(tl.int64) * 0 + index, mask=broken)


class Strides(NamedTuple):
    """Of a tensor [B, C, *spatial] whose spatial dimensions collapse into one, in elements; flat: as in a plain one."""

    sample: int
    channel: int
    pixel: int
    flat: bool


def advance(
    F: Tensor | None,
    F_strides: Strides,
    G: Tensor | None,
    G_strides: Strides,
    guide_scale: Tensor | None,
    known: Tensor | None,
    x: Tensor,
    slots: Tensor,
    net_in: Tensor,
    net_strides: Strides,
    c_noise: Tensor,
    table: Tensor,
    base_row: Tensor,
    bad_row: Tensor,
    seeds: Tensor | None,
    latents: Tensor | None,
    eps: Tensor | None,
    k: int,
    columns: tuple[int, ...],
) -> None:
    """One launch over the whole batch; checks nothing (`engine.backends.triton` does).

    columns: a named tuple that gives each column its index in the table; its length is the table's width.
    x [B, C, *spatial], slots [n, *x.shape], table, base_row, bad_row, c_noise, seeds, latents, eps, guide_scale and
    known are contiguous; at most 2^31 - 1024 elements in a sample of x, F, G or net_in, any number in the batch. What
    is None is not read.
    """
    elements, pixels = x[0].numel(), x[0, 0].numel()
    blocks = triton.cdiv(elements, ELEMENTS)
    width = 16 // x.element_size()
    groups = ELEMENTS // width
    outputs = (net_in if F is None else F, *F_strides[:3], net_in if G is None else G, *G_strides[:3])
    with torch.cuda.device_of(x):
        _advance_kernel[(len(x) * blocks,)](
            *outputs, table if guide_scale is None else guide_scale, x if known is None else known,
            x, slots, x.numel(),
            net_in, *net_strides[:3],
            c_noise, table, base_row, bad_row,
            base_row if seeds is None else seeds, x if latents is None else latents, x if eps is None else eps,
            k, len(table), len(slots), 0 if eps is None else len(eps), elements, pixels, blocks,
            COLUMNS=columns, HAS_F=F is not None, F_FLAT=F_strides.flat, NET_FLAT=net_strides.flat,
            WHOLE=pixels % width == 0,
            SEEDED=seeds is not None, HAS_LATENTS=latents is not None, HAS_EPS=eps is not None,
            GROUPS=groups, WIDTH=width, HAS_G=G is not None, G_FLAT=G_strides.flat, RESCALES=guide_scale is not None,
            HAS_KNOWN=known is not None, COPIES=len(net_in) // len(x),
            num_warps=groups // 32, enable_fp_fusion=False,
        )  # fmt: skip
