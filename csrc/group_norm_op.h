// GroupNorm, and what stands around it in a UNet, on the CPU: silu((1 + scale) * GroupNorm(cat(x, beside) + add) +
// shift), resampled by two, of x in channels_last; and, if asked for, keep_scale * cat(x, beside), resampled too, which is
// what a residual block adds in its end. One pass reads the statistics and one writes. Half precision in and out, float32
// within; the statistics of a group are summed in float64 from float32 sums over 32 pixels, so that they are as exact as
// x is.
//
// Every sample is computed alone, over chunks of pixels that do not depend on the threads: the bits of an image depend
// neither on its batch nor on the number of threads.
#pragma once

#include <array>
#include <string>

#include "advance_call.h"

namespace edm {

constexpr std::int64_t kChunk = 32;      // pixels summed in float32, and a thread's unit of work
constexpr int kMostTaps = 8;             // of a resampling filter
constexpr int kLines = 6;                // floats a channel that a sample's sums become: two lines, and float64 sums

enum Resampling : int { kNone = 0, kUp = 1, kDown = 2 };

// x is [samples, height, width, channels - beside_channels], beside the same with beside_channels, out and keep (or 0)
// [samples, height', width', channels], all dense and of one dtype; weight and bias [channels] of that dtype; add, scale
// and shift float32 [samples, channels], or 0, rows add_stride and scale_stride apart. groups divides channels.
struct GroupNormCall {
    std::int64_t samples = 0, height = 0, width = 0, channels = 0, beside_channels = 0, groups = 1;
    Dtype dtype = kFloat32;
    std::uintptr_t x = 0, beside = 0, weight = 0, bias = 0, out = 0, keep = 0;
    std::uintptr_t add = 0, scale = 0, shift = 0;
    std::int64_t add_stride = 0, scale_stride = 0;
    float eps = 1e-5f, keep_scale = 1;
    bool silu = true;
    Resampling resampling = kNone;
    int taps = 0;                        // even; the filter is separable, zero-padded by taps / 2 - 1
    float filter[kMostTaps] = {};        // one dimension's, with sum 1

    std::array<std::uintptr_t*, 9> addresses() { return {&x, &beside, &weight, &bias, &out, &keep, &add, &scale, &shift}; }
    std::int64_t pixels() const { return height * width; }
    std::int64_t out_height() const { return resampling == kUp ? 2 * height : resampling == kDown ? height / 2 : height; }
    std::int64_t out_width() const { return resampling == kUp ? 2 * width : resampling == kDown ? width / 2 : width; }
};

// group_norm_isa.cpp, compiled once for each instruction set. `sums` [samples, chunks, 2, channels] takes the sums and
// the sums of squares of cat(x, beside) + add; `lines` [samples, kLines, channels] what that is multiplied by, and what
// is added then. `resample` has a row of the input and one of the output, [width + out_width, channels], to itself in `sums`.
using GroupNormLoop = void (*)(const GroupNormCall& call, float* sums, float* lines, std::int64_t begin,
                               std::int64_t end);
struct GroupNormLoops {
    GroupNormLoop sum, fold, apply, resample;    // over chunks, samples, chunks, rows of the output
};
GroupNormLoops group_norm_loops_generic();
GroupNormLoops group_norm_loops_avx2();
GroupNormLoops group_norm_loops_avx512();

// isa: "auto" or one of normal_isas(). Throws std::invalid_argument before anything is written.
void group_norm_cpu(const GroupNormCall& call, std::int64_t threads, const std::string& isa);

}  // namespace edm
