// Vectors of float32, as wide as the instruction set's registers, and a network's elements read into them and written from
// them: loops over elements alone do not always vectorise well. Only for files compiled once per instruction set.
#pragma once

#include "elements.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace edm {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
#ifdef __AVX512F__
constexpr __mmask16 kAll = 0xffff;       // g++ 12 warns of the intrinsics without a mask
#endif
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(kLanes * sizeof(std::uint32_t))));
typedef std::uint16_t Halves __attribute__((vector_size(kLanes * sizeof(std::uint16_t)), aligned(2), may_alias));

inline Lanes lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
inline void put(float* p, const Lanes& v) { *reinterpret_cast<Lanes*>(p) = v; }

inline Lanes lanes(const Float32* p) { return lanes(&p->bits); }
inline void put(Float32* p, const Lanes& v) { put(&p->bits, v); }

// The conversions of half.h; g++ 12 finds better ones for whole registers only where they are named.
inline Lanes lanes(const BFloat16* p) {
#if defined(__AVX512F__)
    const auto words = reinterpret_cast<Words>(_mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
    const auto words = reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    const Words words = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words);
#endif
    return reinterpret_cast<Lanes>(words << 16);
}
inline void put(BFloat16* p, const Lanes& v) {
    const auto bits = reinterpret_cast<Words>(v);
    const Words rounded = (bits + ((bits >> 16) & 1) + 0x7fff) >> 16, halves = v == v ? rounded : Words{} + 0x7fc0;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(kAll, reinterpret_cast<__m512i>(halves)));
#elif defined(__AVX2__)
    const auto twice = _mm256_packus_epi32(reinterpret_cast<__m256i>(halves), reinterpret_cast<__m256i>(halves));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(twice, 8)));
#else
    *reinterpret_cast<Halves*>(p) = __builtin_convertvector(halves, Halves);
#endif
}

inline Lanes lanes(const Float16* p) {
#if defined(__AVX512F__)
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Lanes v;
    for (int i = 0; i < kLanes; ++i) v[i] = p[i].value();
    return v;
#endif
}
inline void put(Float16* p, const Lanes& v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) p[i] = Float16::of(v[i]);
#endif
}

// The first count elements, if they are fewer than a vector's, and zeros behind them; only these are touched.
template <class S>
Lanes lanes(const S* p, std::int64_t count) {
    if (count >= kLanes) return lanes(p);
    S all[kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) all[i] = p[i];
    return lanes(all);
}
template <class S>
void put(S* p, const Lanes& v, std::int64_t count) {
    if (count >= kLanes) return put(p, v);
    S all[kLanes];
    put(all, v);
    for (std::int64_t i = 0; i < count; ++i) p[i] = all[i];
}

}  // namespace
}  // namespace edm
