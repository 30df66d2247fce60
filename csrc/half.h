// Conversions between float32 and the two half precisions, kept as their 16 bits. To a half: round
// to nearest, ties to even, like torch's `.to`; a NaN stays some NaN. Written without branches, so
// that loops over them vectorise on every instruction set.
#pragma once

#include "hd.h"

namespace edm {

EDM_HD float bf16_to_float(std::uint16_t h) {
    return float_of(static_cast<std::int32_t>(static_cast<std::uint32_t>(h) << 16));
}

EDM_HD std::uint16_t float_to_bf16(float x) {
    const auto u = static_cast<std::uint32_t>(bits_of(x));
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

EDM_HD float f16_to_float(std::uint16_t h) {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
#else
    // As float32 bits the exponent is 112 too small; multiplying by 2^112 is exact and mends
    // subnormals too. Infinity and NaN have exponent 31, which becomes 255.
    const std::uint32_t magnitude = (h & 0x7fffu) << 13;
    const float scaled = float_of(static_cast<std::int32_t>(magnitude)) * 0x1p112f;
    const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    const std::uint32_t sign = (h & 0x8000u) << 16;
    return float_of(bits_of(scaled) | static_cast<std::int32_t>(special | sign));
#endif
}

EDM_HD std::uint16_t float_to_f16(float x) {
#ifdef __CUDA_ARCH__
    std::uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
#else
    const auto u = static_cast<std::uint32_t>(bits_of(x));
    const std::uint32_t magnitude = u & 0x7fffffffu;
    // Normal halves: rebias the exponent by -112 and round away 13 bits; 65520 and above carry into infinity.
    const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal halves, below 2^-14, are multiples of 2^-24, the spacing of float32 at 1/2: the addition rounds.
    const std::uint32_t subnormal =
        static_cast<std::uint32_t>(bits_of(float_of(static_cast<std::int32_t>(magnitude)) + 0.5f)) - 0x3f000000u;
    std::uint32_t h = magnitude < 0x38800000u ? subnormal : normal;
    h = magnitude >= 0x477ff000u ? 0x7c00u : h;
    h = magnitude > 0x7f800000u ? 0x7e00u : h;
    return static_cast<std::uint16_t>(h | ((u >> 16) & 0x8000u));
#endif
}

}  // namespace edm
