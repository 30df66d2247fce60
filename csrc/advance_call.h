// One call of `advance` as plain numbers, and its index arithmetic: which elements a run holds, where
// they lie, and whether a row can be carried out. The extension does not link torch: tensors are
// addresses, strides and sizes. All offsets are 64-bit, so more than 2^31 elements are no special case.
#pragma once

#include "hd.h"

namespace edm {

enum Dtype : int { kFloat64, kFloat32, kFloat16, kBFloat16 };

// Strides in elements of a tensor [batch, channel, pixel] at an address; 0: there is none.
struct Buffer {
    std::uintptr_t address = 0;
    Dtype dtype = kFloat32;
    std::int64_t batch = 0, channel = 0, pixel = 1;
};

// Fields as in engine/state.py. x, slots, latents and eps are contiguous [.., samples, channels, pixels].
struct AdvanceCall {
    std::int64_t samples = 0, channels = 0, pixels = 0;
    std::uintptr_t table = 0, base_row = 0;       // float64 [rows, columns], int64 [samples]
    std::int64_t rows = 0, k = 0;                 // sample b reads row base_row[b] + k
    Dtype state_dtype = kFloat64;
    std::uintptr_t x = 0, slots = 0;
    std::int64_t slot_count = 0;
    Buffer F, G, net_in;                          // G in F's dtype
    std::int64_t copies = 1;                      // of the network input: net_in and c_noise hold copies * samples
    std::uintptr_t c_noise = 0, bad_row = 0;      // float32 [copies * samples], int64 [samples]
    std::uintptr_t guide_scale = 0, known = 0;    // float64 [samples], float32 [samples, channels, pixels]
    std::uintptr_t seeds = 0;                     // uint64 [samples]
    Buffer latents, eps;                          // strides unused
    std::int64_t draws = 0;                       // how many eps holds
};

EDM_HD std::int64_t offset_of(const Buffer& t, std::int64_t b, std::int64_t c, std::int64_t p) {
    return b * t.batch + c * t.channel + p * t.pixel;
}

// Where planes follow each other without a gap in F, G and net_in, a sample is one long plane.
EDM_HD void fold_channels(AdvanceCall& call) {
    const auto dense = [&](const Buffer& t) {
        return t.address == 0 || call.channels == 1 || t.channel == call.pixels * t.pixel;
    };
    if (call.pixels == 1) {                       // one pixel: its stride says nothing
        call.F.pixel = call.F.channel;
        call.G.pixel = call.G.channel;
        call.net_in.pixel = call.net_in.channel;
    }
    if (dense(call.F) && dense(call.G) && dense(call.net_in)) {
        call.pixels *= call.channels;
        call.channels = 1;
    }
}

// Lanes [low, high) of a run of `width` (a multiple of 4): lane i is pixel first + i of plane `c` and
// element c * pixels + first + i of the sample. Lane 0's element is a multiple of 4, so that a run
// begins with a whole Philox counter; `first` may be negative and lanes outside the plane are idle.
struct Run {
    std::int64_t first;
    int low, high;
};

EDM_HD Run run_of(std::int64_t pixels, std::int64_t c, std::int64_t index, int width) {
    const std::int64_t first = index * width - (c * pixels) % 4;
    const std::int64_t left = pixels - first;
    const int low = first < 0 ? static_cast<int>(-first) : 0;
    const int high = left > width ? width : static_cast<int>(left > 0 ? left : 0);
    return {first, low, high};
}

// Runs that cover every plane.
EDM_HD std::int64_t run_count(std::int64_t channels, std::int64_t pixels, int width) {
    const std::int64_t shift = channels == 1 || pixels % 4 == 0 ? 0 : 3;
    return (pixels + shift + width - 1) / width;
}

}  // namespace edm
