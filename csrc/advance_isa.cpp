// The CPU's `advance`. CMake compiles this file once per instruction set, with EDM_ISA naming it;
// advance_op.cpp chooses at run time. Nothing from the standard library is instantiated here, for
// the reason given in hd.h.
#include "advance_cpu_io.h"

namespace edm {
namespace {

template <class T>
CpuIo<T> io_of(const AdvanceCall& call, std::int64_t b, std::int64_t c, std::int64_t index, Planes* planes) {
    const Run run = run_of(call.pixels, c, index, W);
    const std::int64_t pixel = run.first + run.low;
    return {call, b, c, pixel, c * call.pixels + pixel, run.high - run.low, run.low, planes, false};
}

template <class T>
std::int64_t bytes_of_x(const AdvanceCall& call) {
    return call.samples * call.channels * call.pixels * static_cast<std::int64_t>(sizeof(T));
}

template <class T>
bool advance_planes(const AdvanceCall& call, const Row& row, std::int64_t b, std::int64_t index, Planes* planes) {
    bool bad = false;
    for (std::int64_t c = 0; c < call.channels; ++c) {
        CpuIo<T> io = io_of<T>(call, b, c, index, planes);
        io.streams = row.op == kPredict && bytes_of_x<T>(call) >= kStreamedSlope;
        if (io.n > 0) {
            bad |= advance_run<T, W>(row, io.n, 0, io.n, io);
        }
    }
    return bad;
}

// Every plane's run starts at the same pixel, and a pixel's channels are all there is between two pixels.
bool interleaved(const AdvanceCall& call, int channels) {
    const auto fits = [&](const Buffer& t) {
        return t.address == 0 || (t.dtype != kFloat64 && t.channel == 1 && t.pixel == channels);
    };
    return call.channels == channels && call.pixels % 4 == 0 && fits(call.F) && fits(call.G) && fits(call.net_in);
}

template <int C, class T>
bool advance_interleaved(const AdvanceCall& call, const Row& row, std::int64_t b, std::int64_t index) {
    Planes planes;
    const CpuIo<T> io = io_of<T>(call, b, 0, index, &planes);
    if (row.op != kBegin && (row.op != kLinear || has_D(row))) {
        take_apart<C>(call.F, offset_of(call.F, b, 0, io.pixel), io.n, planes.F);
        if (row.guide_G != 0) {
            take_apart<C>(call.G, offset_of(call.G, b, 0, io.pixel), io.n, planes.G);
        }
    }
    const bool bad = advance_planes<T>(call, row, b, index, &planes);
    const bool streams = bytes_of_x<T>(call) >= kStreamedInput;
    for (std::int64_t j = 0; j < call.copies && row.evaluate != 0; ++j) {
        const std::int64_t offset = offset_of(call.net_in, b + j * call.samples, 0, io.pixel);
        put_together<C>(planes.net, io.n, call.net_in, offset, streams);
    }
    return bad;
}

template <class T>
bool advance_unit(const AdvanceCall& call, const Row& row, std::int64_t b, std::int64_t index) {
    return interleaved(call, 3)   ? advance_interleaved<3, T>(call, row, b, index)
           : interleaved(call, 4) ? advance_interleaved<4, T>(call, row, b, index)
                                  : advance_planes<T>(call, row, b, index, nullptr);
}

// Adds a run of one plane to the lanes of its sample.
template <class P>
void add_to_lanes(const AdvanceCall& call, const Row& row, std::int64_t b, std::int64_t c, std::int64_t index,
                  GuideSums (&lanes)[kGuideLanes]) {
    const CpuIo<double> io = io_of<double>(call, b, c, index, nullptr);
    if (io.n <= 0) {
        return;
    }
    P plain_room[W], guided_room[W];
    const P* plain = io.F(plain_room);
    const P* seen = guided<P, W>(row, io.n, io, guided_room);
    for (int i = 0; i < io.n; ++i) {
        const double a = static_cast<double>(plain[i]), b_ = static_cast<double>(seen[i]);
        GuideSums& lane = lanes[(io.element + i) % kGuideLanes];
        lane = added(lane, {a, a * a, b_, b_ * b_});
    }
}

void find_scale(const AdvanceCall& call, const Row& row, std::int64_t b) {
    GuideSums lanes[kGuideLanes] = {};
    const std::int64_t runs = run_count(call.channels, call.pixels, W);
    for (std::int64_t c = 0; c < call.channels; ++c) {
        for (std::int64_t index = 0; index < runs; ++index) {
            if (call.F.dtype == kFloat64) {
                add_to_lanes<double>(call, row, b, c, index, lanes);
            } else {
                add_to_lanes<float>(call, row, b, c, index, lanes);
            }
        }
    }
    for (int width = kGuideLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] = added(lanes[2 * i], lanes[2 * i + 1]);
    }
    const auto elements = static_cast<double>(call.channels * call.pixels);
    reinterpret_cast<double*>(call.guide_scale)[b] = guide_scale(lanes[0], elements, row.rescale);
}

}  // namespace

void EDM_JOIN(guide_scales_, EDM_ISA)(const AdvanceCall& call, std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
        const auto which = reinterpret_cast<const std::int64_t*>(call.base_row)[b] + call.k;
        const Row& row = reinterpret_cast<const Row*>(call.table)[which];
        if (row.op != kBegin && row.rescale != 0) {
            find_scale(call, row, b);
        }
    }
}

// A unit is one run of every plane of a sample, so that a channels_last line is read while it is in the cache.
void EDM_JOIN(advance_units_, EDM_ISA)(const AdvanceCall& call, std::int64_t begin, std::int64_t end) {
    const std::int64_t runs = run_count(call.channels, call.pixels, W);
    const auto* base_row = reinterpret_cast<const std::int64_t*>(call.base_row);
    auto* bad_row = reinterpret_cast<std::int64_t*>(call.bad_row);
    for (std::int64_t unit = begin; unit < end; ++unit) {
        const std::int64_t b = unit / runs, index = unit % runs, which = base_row[b] + call.k;
        const Row& row = reinterpret_cast<const Row*>(call.table)[which];
        const bool bad = call.state_dtype == kFloat64 ? advance_unit<double>(call, row, b, index)
                                                      : advance_unit<float>(call, row, b, index);
        for (std::int64_t j = 0; j < call.copies && index == 0 && row.evaluate != 0; ++j) {
            reinterpret_cast<float*>(call.c_noise)[b + j * call.samples] = static_cast<float>(row.c_noise);
        }
        // Atomic because another thread may hold another run of this sample; all write the same row.
        if (bad && __atomic_load_n(&bad_row[b], __ATOMIC_RELAXED) < 0) {
            __atomic_store_n(&bad_row[b], which, __ATOMIC_RELAXED);
        }
    }
    finish_streams();
}

}  // namespace edm
