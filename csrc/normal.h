// Standard normal float32 numbers from random words by the Box-Muller transform, in IEEE float32
// + - * sqrt, conversions, integer operations and selects only, in a fixed order. No FMA, no
// division, no libm: the same words give the same bits in NumPy, torch, C++, Triton and CUDA.
//
// Reference: engine/noise.py (log_ref, cos_sin_ref, box_muller_ref), operation by operation.
//
// Largest error over every argument that can occur (tests/unit/test_noise.py, exhaustive):
//     log 0.842 ulp, sin 0.897 ulp, cos 0.894 ulp.
// The polynomials are weighted minimax fits whose coefficients were rounded to float32 one after
// the other, lowest degree first, refitting the rest each time.
#pragma once

#include "philox.h"

namespace edm {

struct Pair {
    float first, second;
};

// log(u) for u in [2^-33, 1]; log(1) = 0 exactly, and never positive.
// u = 2^k m, m in [sqrt(1/2), sqrt(2)), f = m - 1:  log u = k ln2 + f - f^2/2 + f^3 P(f).
EDM_HD float log_unit(float u) {
    // Bits counted from sqrt(1/2): the exponent field is then k, the rest is m's distance from it.
    const std::int32_t i = bits_of(u) - 0x3f3504f3;
    const float k = static_cast<float>(i >> 23);                          // arithmetic shift: floor
    const float f = float_of((i & 0x007fffff) + 0x3f3504f3) - 1.0f;       // exact
    const float z = f * f;
    float p = -0x1.482cf6p-4f;
    p = p * f + 0x1.0be48ap-3f;
    p = p * f + -0x1.0d2e1ep-3f;
    p = p * f + 0x1.219c94p-3f;
    p = p * f + -0x1.545e64p-3f;
    p = p * f + 0x1.99b418p-3f;
    p = p * f + -0x1.0002b2p-2f;
    p = p * f + 0x1.55551ep-2f;
    float y = (f * z) * p;
    y = y + k * 0x1.7f7d1cp-20f;              // k * (ln2 - 0x1.62e4p-1), the small half
    y = y - 0.5f * z;
    return k * 0x1.62e4p-1f + (f + y);        // k * 0x1.62e4p-1 is exact: 17 bits times 6
}

// cos and sin of (pi/4) t, t in [-1, 1].
// The leading 1/4 is split off because multiplying by it is exact: only the small rest is rounded.
EDM_HD Pair cos_sin_eighth(float t) {
    const float z = t * t;
    float c = -0x1.d9b6a0p-19f;               // cos = 1 - (z/4 + z Q(z))
    c = c * z + 0x1.55c5b0p-12f;
    c = c * z + -0x1.03c1dep-6f;
    c = c * z + 0x1.de9e64p-5f;
    c = 1.0f - (0.25f * z + z * c);
    float s = 0x1.2d3eaap-15f;                // sin = t - (t/4 + t R(z))
    s = s * z + -0x1.465c76p-9f;
    s = s * z + 0x1.4abbb2p-4f;
    s = s * z + -0x1.21fb52p-5f;
    s = t - (0.25f * t + t * s);
    return {c, s};
}

// Two normals from two words: ra gives the radius, rb the angle 2 pi rb / 2^32.
EDM_HD Pair box_muller(std::uint32_t ra, std::uint32_t rb) {
    // The middle of one of 2^32 cells, so never 0; the largest rounds to 1, where the radius is 0.
    const float u = static_cast<float>(ra) * 0x1p-32f + 0x1p-33f;
    const float radius = sqrt_rn(-2.0f * log_unit(u));
    // Nearest quarter turn, and the signed rest in eighths of a turn; both exact in integers.
    const std::uint32_t quadrant = (rb + 0x20000000u) >> 30;
    const float t = static_cast<float>(static_cast<std::int32_t>(rb << 2)) * 0x1p-31f;
    const Pair cs = cos_sin_eighth(t);
    const bool swap = (quadrant & 1u) != 0;
    float x = swap ? cs.second : cs.first;
    float y = swap ? cs.first : cs.second;
    // Times -1, not 0 - x: the sign of a zero is part of the bits.
    x = x * (((quadrant + 1u) & 2u) != 0 ? -1.0f : 1.0f);
    y = y * ((quadrant & 2u) != 0 ? -1.0f : 1.0f);
    return {radius * x, radius * y};
}

}  // namespace edm
