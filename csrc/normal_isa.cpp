// The normal generator's inner loop. CMake compiles this file once per instruction set, with
// EDM_ISA naming it; normal_op.cpp chooses at run time. Nothing from the standard library is
// instantiated here, for the reason given in hd.h.
#include "normal.h"
#include "normal_op.h"

namespace edm {
namespace {

// A compile-time trip count lets the compiler vectorise over counters without a remainder loop
// (g++ 12 does so at 16, 32 and 64 bytes: -fopt-info-vec).
constexpr int kBlock = 64;

// The 4 * kBlock normals of the counters quad, quad + 1, ...
void fill_block(std::uint64_t seed, std::uint64_t draw, std::uint64_t quad, float* __restrict__ out) {
    const auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    const auto d0 = static_cast<std::uint32_t>(draw), d1 = static_cast<std::uint32_t>(draw >> 32);
    const auto q0 = static_cast<std::uint32_t>(quad), q1 = static_cast<std::uint32_t>(quad >> 32);
    // In three loops, because the registers do not hold words, polynomials and the interleaved
    // stores at once: 1.42 ns a normal against 1.58 in one loop (AVX-512, AMD EPYC).
    std::uint32_t w[4][kBlock];
    for (int i = 0; i < kBlock; ++i) {
        const std::uint32_t lo = q0 + static_cast<std::uint32_t>(i);
        const std::uint32_t hi = q1 + (lo < q0 ? 1u : 0u);      // carry, in 32-bit lanes
        const Words r = philox4x32(k0, k1, {lo, hi, d0, d1});
        w[0][i] = r.w0;
        w[1][i] = r.w1;
        w[2][i] = r.w2;
        w[3][i] = r.w3;
    }
    float z[4][kBlock];
    for (int pair = 0; pair < 4; pair += 2) {
        for (int i = 0; i < kBlock; ++i) {
            const Pair p = box_muller(w[pair][i], w[pair + 1][i]);
            z[pair][i] = p.first;
            z[pair + 1][i] = p.second;
        }
    }
    for (int i = 0; i < kBlock; ++i) {
        out[4 * i + 0] = z[0][i];
        out[4 * i + 1] = z[1][i];
        out[4 * i + 2] = z[2][i];
        out[4 * i + 3] = z[3][i];
    }
}

}  // namespace

void EDM_JOIN(normal_fill_, EDM_ISA)(std::uint64_t seed, std::uint64_t draw, std::uint64_t quad,
                                     float* out, std::int64_t count) {
    for (; count >= 4 * kBlock; count -= 4 * kBlock, out += 4 * kBlock, quad += kBlock) {
        fill_block(seed, draw, quad, out);
    }
    if (count > 0) {
        float rest[4 * kBlock];
        fill_block(seed, draw, quad, rest);
        memcpy(out, rest, static_cast<std::size_t>(count) * sizeof(float));
    }
}

}  // namespace edm
