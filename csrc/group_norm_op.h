// GroupNorm, and what stands around it in a UNet, on the CPU: silu((1 + scale) * GroupNorm(x + add) + shift) of x in
// channels_last, in one pass to read the statistics and one to write. Half precision in and out, float32 within; the
// statistics of a group are summed in float64 from float32 sums over 32 pixels, so that they are as exact as x is.
//
// Every sample is computed alone, over chunks of pixels that do not depend on the threads: the bits of an image depend
// neither on its batch nor on the number of threads.
#pragma once

#include <string>

#include "advance_call.h"

namespace edm {

constexpr std::int64_t kChunk = 32;      // pixels summed in float32, and a thread's unit of work

// x and out are [samples, pixels, channels] of one dtype, dense; weight and bias [channels] of that dtype; add, scale
// and shift float32 [samples, channels], or 0. groups divides channels.
struct GroupNormCall {
    std::int64_t samples = 0, pixels = 0, channels = 0, groups = 1;
    Dtype dtype = kFloat32;
    std::uintptr_t x = 0, weight = 0, bias = 0, add = 0, scale = 0, shift = 0, out = 0;
    float eps = 1e-5f;
    bool silu = true;
};

// group_norm_isa.cpp, compiled once for each instruction set. `sums` [samples, chunks, 2, channels] takes the sums and
// the sums of squares of x + add; `lines` [samples, 2, channels] what x is multiplied by, and what is added then.
using GroupNormLoop = void (*)(const GroupNormCall& call, float* sums, float* lines, std::int64_t begin,
                               std::int64_t end);
struct GroupNormLoops {
    GroupNormLoop sum, fold, apply;      // over chunks, samples, chunks
};
GroupNormLoops group_norm_loops_generic();
GroupNormLoops group_norm_loops_avx2();
GroupNormLoops group_norm_loops_avx512();

// isa: "auto" or one of normal_isas(). Throws std::invalid_argument before anything is written.
void group_norm_cpu(const GroupNormCall& call, std::int64_t threads, const std::string& isa);

}  // namespace edm
