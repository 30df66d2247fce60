// The networks' activation, for loops that vectorise. Not of the solver: contraction is welcome.
#pragma once

#include "hd.h"

namespace edm {

// e^z for |z| up to 87, within 2 ulp: 2^n times a polynomial of degree 6 in the rest, |rest| <= ln 2 / 2.
EDM_HD float exp_of(float z) {
    constexpr float kMagic = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer
    const float n = (z * 1.44269504f + kMagic) - kMagic;
    const float r = (z - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((static_cast<std::int32_t>(n) + 127) << 23);
}

// y / (1 + e^-y). Comparisons that a NaN fails leave the clamp's bound, and the NaN in the numerator.
EDM_HD float silu_of(float y) {
    const float below = -y < 87.0f ? -y : 87.0f;
    return y / (1.0f + exp_of(below > -87.0f ? below : -87.0f));
}

}  // namespace edm
