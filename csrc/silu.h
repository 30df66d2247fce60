// The networks' activation, of vectors. Not of the solver: contraction is welcome.
//
// Of vectors because of the bounds: from a comparison of single numbers g++ makes, for every number, also the quotient by
// the bound, a denormal, which takes a processor a hundred cycles: AVX2 was five times slower.
#pragma once

#include "hd.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace edm {

// e^z for |z| up to 87, within 3 ulp, 6 at the ends: 2^n times a polynomial in the rest, |rest| <= ln 2 / 2, of least relative error
// (1.05e-7) among those of degree 5 that begin with 1 + r.
template <class V>
static inline V exp_of(V z) {
    using Integers = decltype(z < z);
    constexpr float kMagic = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer, which the last bits then are
    const V shifted = z * 1.44269504f + kMagic, n = shifted - kMagic;
#if defined(__FMA__) || defined(__AVX512F__)  // n * ln 2 is not rounded, so ln 2 need not be split
    const V r = z - n * 0.693147181f, square = r * r;
#else
    const V r = (z - n * 0.693359375f) - n * -2.12194440e-4f, square = r * r;
#endif
    const V high = r * 8.312501297e-3f + 4.189033171e-2f, low = r * 1.666711539e-1f + 4.999923031e-1f;
    const V p = (r + 1.0f) + square * (low + square * high);
    return reinterpret_cast<V>(reinterpret_cast<Integers>(p) + (reinterpret_cast<Integers>(shifted) << 23));
}

// The smaller of each element, neither negative, and of the bits of 87.
template <class I>
static inline I at_most_87(I bits) {
    constexpr int kBits = 0x42ae0000;
#ifdef __AVX512F__                            // g++ 12 compares and selects: 15% of silu's time
    static_assert(sizeof(I) == sizeof(__m512i), "a whole register");
    return reinterpret_cast<I>(_mm512_maskz_min_epi32(0xffff, reinterpret_cast<__m512i>(bits), _mm512_set1_epi32(kBits)));
#else
    return bits < kBits ? bits : I{} + kBits;
#endif
}

// y / (1 + e^-y), with |y| up to 87 in the exponent; the NaN of a NaN comes from the numerator.
template <class V>
static inline V silu_of(V y) {
    using Integers = decltype(y < y);
    const auto bits = reinterpret_cast<Integers>(y);
    const Integers opposite = at_most_87(bits & 0x7fffffff) | (~bits & ~0x7fffffff);
    return y / (exp_of(reinterpret_cast<V>(opposite)) + 1.0f);
}

}  // namespace edm
