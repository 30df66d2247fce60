// A convolution of stride 1 on the CPU, in channels_last: out = conv(x) + bias + add. One of 3x3, padding 1, by Winograd's
// minimal filtering (Lavin and Gray 2016): a tile of m by m outputs takes (m + 2)^2 products an input and output channel
// instead of 9 m^2: for m = 2 4/9 of them, for m = 4 1/4. One of 1x1 as it is defined, by the same loops: m = 1.
//
// Everything within is float32, whatever x is. m = 2 interpolates at 0, 1, -1 and infinity; its sums are over the input
// channels only, a ninth of those of the convolution as defined, and its error against float64 is the smaller one. m = 4,
// at 0, +-3/4, +-3/2 and infinity, has about the error of torch's float32 convolution from 128 inputs on, and is always
// far below what half precision rounds away.
//
// An output's arithmetic is the same wherever its tile lies and whichever thread computes it: the bits of an image depend
// neither on its batch nor on the number of threads, nor on whether the processor has AVX2 or AVX-512.
#pragma once

#include <array>
#include <string>

#include "advance_call.h"
#include "panels.h"

namespace edm {

// x [samples, height, width, inputs], add (or 0) and out [samples, height, width, outputs], bias (or 0) [outputs] and
// weight [ceil(outputs / kPanel), inputs, 9 or 1, kPanel], zeros behind the last output: all dense and of one dtype. The
// weights are transformed in every call: from memory they take 9 numbers of x's dtype instead of 16 or 36 of float32, which
// is what a batch of one waits for. inputs is a multiple of 16.
struct WinogradCall {
    std::int64_t samples = 0, height = 0, width = 0, inputs = 0, outputs = 0;
    int m = 2;
    Dtype dtype = kFloat32;
    std::uintptr_t x = 0, weight = 0, bias = 0, add = 0, out = 0;

    std::array<std::uintptr_t*, 5> addresses() { return {&x, &weight, &bias, &add, &out}; }
    std::int64_t positions() const { return m == 1 ? 1 : (m + 2) * (m + 2); }
    std::int64_t tiles_down() const { return (height + m - 1) / m; }
    std::int64_t tiles_across() const { return (width + m - 1) / m; }
    std::int64_t tiles() const { return samples * tiles_down() * tiles_across(); }
    std::int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
};

// Tiles [first, last), outputs of panels [first_panel, last_panel).
struct WinogradPart {
    std::int64_t first, last, first_panel, last_panel;
};

// Where things lie in the scratch of a part of so many tiles, in floats. First the transformed inputs, then the transformed
// weights of a panel and a run, all products of a panel, and a line of zeros for pixels outside.
struct WinogradScratch {
    std::int64_t weights, products, zeros, size;
};
WinogradScratch winograd_scratch(const WinogradCall& call, std::int64_t tiles);

constexpr std::int64_t kGap = 16;        // floats between positions: at powers of two they would share few lines of the cache
// From one position's transformed weights to the next's, and of products where a part has the most tiles that it may:
// constants, because a square's addresses would not fit the registers (3 to 6% of all for m = 4).
constexpr std::int64_t kWeightsStep = kRun * kPanel + kGap;
constexpr std::int64_t most_tiles(std::int64_t positions) { return 288 * 1024 / 4 / (positions * kPanel); }
constexpr std::int64_t products_step(std::int64_t positions) { return most_tiles(positions) * kPanel + kGap; }

// winograd_isa.cpp, compiled once for each instruction set. scratch: aligned to 64 bytes.
using WinogradLoop = void (*)(const WinogradCall& call, const WinogradPart& part, float* scratch);
void winograd_generic(const WinogradCall&, const WinogradPart&, float*);
void winograd_avx2(const WinogradCall&, const WinogradPart&, float*);
void winograd_avx512(const WinogradCall&, const WinogradPart&, float*);

// isa: "auto" or one of normal_isas(). Throws std::invalid_argument before anything is written.
void winograd_cpu(const WinogradCall& call, std::int64_t threads, const std::string& isa);

}  // namespace edm
