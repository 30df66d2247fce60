// Products of matrices in float32, of rows in runs by columns in panels: what our convolutions and attention spend their time
// on, at 0.9 of the processor's peak. Only for files compiled once per instruction set.
#pragma once

#include "lanes.h"
#include "panels.h"

namespace edm {
namespace {

// A block of the product: rows by two vectors of sums, in registers.
constexpr int kRows = kLanes == 16 ? 12 : 6;    // 24 of 32, 12 of 16

// R rows of a, kRun apart, times two vectors of a panel's columns, from b on: to c, rows kPanel apart, or added to it. The
// sums run over k in order, and start anew every kSum. Meanwhile the rows behind these are fetched: they lie in the second
// or third cache. The distance of rows is a constant because R addresses would not fit the registers.
template <int R>
void product(const float* a, const float* b, std::int64_t count, bool anew, float* c) {
    for (std::int64_t first = 0; first < count; first += kSum) {
        const std::int64_t last = first + kSum < count ? first + kSum : count;
        Lanes sum[R][2] = {};
        for (std::int64_t k = first; k < last; ++k) {
            __builtin_prefetch(a + R * kRun + k * 16);
            const Lanes b0 = lanes(b + k * kPanel), b1 = lanes(b + k * kPanel + kLanes);
#pragma GCC unroll 12                    // or the sums live in memory
            for (int r = 0; r < R; ++r) {
                const float& value = a[r * kRun + k];
#ifdef __AVX512F__
                // Read by the multiplications themselves: an instruction less, a load more. Loads allow it for a third of
                // the rows: 8 to 10% where a core starts four instructions a cycle (Cascade Lake).
                if (r % 3 == 2) {
                    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum[r][0]) : "v"(b0), "m"(value));
                    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum[r][1]) : "v"(b1), "m"(value));
                    continue;
                }
#endif
                sum[r][0] += value * b0;
                sum[r][1] += value * b1;
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < 2; ++v) {
                float* to = c + r * kPanel + v * kLanes;
                put(to, anew && first == 0 ? sum[r][v] : lanes(to) + sum[r][v]);
            }
        }
    }
}

using Product = void (*)(const float*, const float*, std::int64_t, bool, float*);
constexpr Product kProducts[] = {product<1>, product<2>, product<3>, product<4>,  product<5>,  product<6>
#ifdef __AVX512F__
                                 , product<7>, product<8>, product<9>, product<10>, product<11>, product<12>
#endif
};

// All rows of a run times a panel, in blocks of rows that differ by one at most.
void multiply(const float* a, const float* b, std::int64_t count, std::int64_t rows, bool anew, float* c) {
    const std::int64_t blocks = (rows + kRows - 1) / kRows;
    for (std::int64_t block = 0, row = 0; block < blocks; ++block) {
        const std::int64_t R = rows / blocks + (block < rows % blocks ? 1 : 0);
        for (int column = 0; column < kPanel; column += 2 * kLanes) {
            kProducts[R - 1](a + row * kRun, b + column, count, anew, c + row * kPanel + column);
        }
        row += R;
    }
}

}  // namespace
}  // namespace edm
