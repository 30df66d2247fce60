"""Counter-based normal noise in Triton: Philox4x32-10 and Box-Muller, the bits of `engine/noise.py`.

`philox4x32` and `box_muller` are the device functions `advance` draws from, in registers; `normal` is a kernel of
its own that writes 4 bytes and reads nothing per element. Four consecutive elements share one counter, so every tile
here has shape [quads, 4]: one Philox call serves a row of it. Operations are IEEE float32 ``+ - * sqrt``,
conversions, integers and selects, in the order of csrc/normal.h; never compile these with `enable_fp_fusion`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

QUADS = 128  # rows of a tile: one quad a thread, so that its 4 numbers leave in one 16-byte store
NUM_WARPS = 4

# csrc/normal.h states what each is, and the accuracy they give.
_LOG_0, _LOG_1 = tl.constexpr(float.fromhex("-0x1.482cf6p-4")), tl.constexpr(float.fromhex("0x1.0be48ap-3"))
_LOG_2, _LOG_3 = tl.constexpr(float.fromhex("-0x1.0d2e1ep-3")), tl.constexpr(float.fromhex("0x1.219c94p-3"))
_LOG_4, _LOG_5 = tl.constexpr(float.fromhex("-0x1.545e64p-3")), tl.constexpr(float.fromhex("0x1.99b418p-3"))
_LOG_6, _LOG_7 = tl.constexpr(float.fromhex("-0x1.0002b2p-2")), tl.constexpr(float.fromhex("0x1.55551ep-2"))
_COS_0, _COS_1 = tl.constexpr(float.fromhex("-0x1.d9b6a0p-19")), tl.constexpr(float.fromhex("0x1.55c5b0p-12"))
_COS_2, _COS_3 = tl.constexpr(float.fromhex("-0x1.03c1dep-6")), tl.constexpr(float.fromhex("0x1.de9e64p-5"))
_SIN_0, _SIN_1 = tl.constexpr(float.fromhex("0x1.2d3eaap-15")), tl.constexpr(float.fromhex("-0x1.465c76p-9"))
_SIN_2, _SIN_3 = tl.constexpr(float.fromhex("0x1.4abbb2p-4")), tl.constexpr(float.fromhex("-0x1.21fb52p-5"))
_LN2_HI, _LN2_LO = tl.constexpr(float.fromhex("0x1.62e4p-1")), tl.constexpr(float.fromhex("0x1.7f7d1cp-20"))
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_2_M31, _2_M32, _2_M33 = tl.constexpr(2.0**-31), tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)


@triton.jit
def philox4x32(k0, k1, c0, c1, c2, c3):
    """Philox4x32-10 (Salmon et al. 2011, section 5): uint32 key and counter words to four random uint32 words."""
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53  # one 32 x 32 -> 64 bit multiplication
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log_unit(u):
    """log of float32 u in [2^-33, 1]: u = 2^k m, f = m - 1, log u = k ln2 + f - f^2/2 + f^3 P(f)."""
    i = u.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    k = (i >> 23).to(tl.float32)
    f = ((i & 0x007FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    z = f * f
    p = f * _LOG_0 + _LOG_1
    p = p * f + _LOG_2
    p = p * f + _LOG_3
    p = p * f + _LOG_4
    p = p * f + _LOG_5
    p = p * f + _LOG_6
    p = p * f + _LOG_7
    y = (f * z) * p
    y = y + k * _LN2_LO
    y = y - 0.5 * z
    return k * _LN2_HI + (f + y)


@triton.jit
def cos_sin_eighth(t):
    """cos and sin of (pi/4) t for float32 t in [-1, 1]."""
    z = t * t
    c = z * _COS_0 + _COS_1
    c = c * z + _COS_2
    c = c * z + _COS_3
    c = 1.0 - (0.25 * z + z * c)
    s = z * _SIN_0 + _SIN_1
    s = s * z + _SIN_2
    s = s * z + _SIN_3
    s = t - (0.25 * t + t * s)
    return c, s


@triton.jit
def box_muller(ra, rb):
    """Two float32 normals from two uint32 words: ra gives the radius, rb the angle 2 pi rb / 2^32."""
    u = ra.to(tl.float32) * _2_M32 + _2_M33
    radius = tl.sqrt_rn(log_unit(u) * -2.0)
    quadrant = (rb + 0x20000000) >> 30
    t = (rb << 2).to(tl.int32, bitcast=True).to(tl.float32) * _2_M31
    cos, sin = cos_sin_eighth(t)
    swap = (quadrant & 1) != 0
    x = tl.where(swap, sin, cos)
    y = tl.where(swap, cos, sin)
    x = tl.where(((quadrant + 1) & 2) != 0, x * -1.0, x)  # times -1, not 0 - x: the sign of a zero is part of the bits
    y = tl.where((quadrant & 2) != 0, y * -1.0, y)
    return radius * x, radius * y


@triton.jit
def normal_groups(seed, draw, groups, WIDTH: tl.constexpr):
    """Normals of elements WIDTH * g to WIDTH * g + WIDTH - 1 for each int32 g of ``groups`` [G]: float32 [G, WIDTH].

    seed and draw are int64 scalars, the bit patterns of 64-bit words. WIDTH is 4, a whole quad, or 2: then the two
    halves of a quad both run Philox, the cheaper part, and each its own half of Box-Muller, the dearer.
    """
    zero = groups.to(tl.uint32) * 0
    quads = zero + (groups // (4 // WIDTH)).to(tl.uint32)
    draw_low, draw_high = zero + draw.to(tl.uint32), zero + (draw >> 32).to(tl.uint32)
    r0, r1, r2, r3 = philox4x32(seed.to(tl.uint32), (seed >> 32).to(tl.uint32), quads, zero, draw_low, draw_high)
    if WIDTH == 2:
        second = (groups & 1) != 0
        z0, z1 = box_muller(tl.where(second, r2, r0), tl.where(second, r3, r1))
        z = tl.join(z0, z1)
    else:
        tl.static_assert(WIDTH == 4)
        z0, z1 = box_muller(r0, r1)
        z2, z3 = box_muller(r2, r3)
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [groups.shape[0], 4])
    return z


@triton.jit(do_not_specialize=["blocks"])
def _normal_kernel(out_ptr, seeds_ptr, draws_ptr, elements, blocks, QUADS: tl.constexpr):
    """Program (sample, block) writes 4 * QUADS elements of one sample."""
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    quads = tl.program_id(0) % blocks * QUADS + tl.arange(0, QUADS)
    e = quads[:, None] * 4 + tl.arange(0, 4)[None, :]
    z = normal_groups(tl.load(seeds_ptr + sample), tl.load(draws_ptr + sample), quads, 4)
    tl.store(out_ptr + sample * elements + e, z, mask=e < elements)


def normal(seeds: Tensor, draws: Tensor, out: Tensor) -> None:
    """Fill ``out`` with standard normals, in one launch; 4 bytes written per element.

    seeds, draws: int64 [B], bit patterns of 64-bit words, on out's device. out: float32 [B, *shape], contiguous,
    fewer than 2^31 - 512 elements a sample.
    """
    elements = out[0].numel() if len(out) else 0
    if elements == 0:
        return
    blocks = triton.cdiv(elements, 4 * QUADS)
    with torch.cuda.device_of(out):
        _normal_kernel[(len(out) * blocks,)](
            out, seeds, draws, elements, blocks, QUADS=QUADS, num_warps=NUM_WARPS, enable_fp_fusion=False
        )
