// The loops of linear_op.h. CMake compiles this file once per instruction set, with EDM_ISA naming it. Nothing from the
// standard library is instantiated here, for the reason given in hd.h.
#include "linear_op.h"
#include "silu.h"

namespace edm {
namespace {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
#ifdef __AVX512F__
constexpr int kTile = 4;                 // tile * tile sums, in registers: 16 of 32
#else
constexpr int kTile = 2;                 // 8 of 16, two a sum
#endif

inline Lanes lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

// The `count` numbers from p on, then zeros.
inline Lanes lanes(const float* p, std::int64_t count) {
    float all[kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) all[i] = p[i];
    return lanes(all);
}

// Halves added to halves, four times over.
inline float sum_of(const Lanes& v) {
    typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    const auto* half = reinterpret_cast<const Eight*>(&v);
    const Eight eight = half[0] + half[1];
    const auto* quarter = reinterpret_cast<const Four*>(&eight);
    const Four four = quarter[0] + quarter[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// A tile of R rows and C outputs; every element is summed in the same order in every tile.
template <int R, int C>
void tile(const LinearCall& call, std::int64_t row, std::int64_t column) {
    const std::int64_t K = call.inputs, N = call.outputs;
    const float* x = reinterpret_cast<const float*>(call.x) + row * K;
    const float* w = reinterpret_cast<const float*>(call.weight) + column * K;
    Lanes sum[R][C] = {};
    std::int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) {
#pragma GCC unroll 4                     // or the sums live in memory: three times slower
        for (int c = 0; c < C; ++c) {
            const Lanes weights = lanes(w + c * K + k);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][c] += lanes(x + r * K + k) * weights;
        }
    }
    for (int c = 0; k < K && c < C; ++c) {
        for (int r = 0; r < R; ++r) sum[r][c] += lanes(x + r * K + k, K - k) * lanes(w + c * K + k, K - k);
    }
    float* out = reinterpret_cast<float*>(call.out) + row * N + column;
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) out[r * N + c] = sum_of(sum[r][c]);
    }
}

// What follows the product, for outputs [begin, end) of every row: in loops that vectorise.
void finish(const LinearCall& call, std::int64_t begin, std::int64_t end) {
    const auto* bias = reinterpret_cast<const float*>(call.bias);
    for (std::int64_t row = 0; row < call.rows; ++row) {
        float* __restrict__ out = reinterpret_cast<float*>(call.out) + row * call.outputs;
        const float* add = reinterpret_cast<const float*>(call.add) + row * call.outputs;
        for (std::int64_t i = begin; call.bias != 0 && i < end; ++i) out[i] += bias[i];
        for (std::int64_t i = begin; call.add != 0 && i < end; ++i) out[i] += add[i];
        for (std::int64_t i = begin; call.silu && i < end; i += kLanes) {
            const std::int64_t count = i + kLanes < end ? kLanes : end - i;
            const Lanes made = silu_of(lanes(out + i, count));
            for (std::int64_t j = 0; j < count; ++j) out[i + j] = made[j];
        }
    }
}

template <int C>
void columns(const LinearCall& call, std::int64_t column) {
    std::int64_t row = 0;
    for (; row + kTile <= call.rows; row += kTile) tile<kTile, C>(call, row, column);
    for (; row < call.rows; ++row) tile<1, C>(call, row, column);
}

}  // namespace

void EDM_JOIN(linear_, EDM_ISA)(const LinearCall& call, std::int64_t begin, std::int64_t end) {
    std::int64_t column = begin;
    for (; column + kTile <= end; column += kTile) columns<kTile>(call, column);
    for (; column < end; ++column) columns<1>(call, column);
    finish(call, begin, end);
}

}  // namespace edm
