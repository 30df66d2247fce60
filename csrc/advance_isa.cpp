// The CPU's `advance`. CMake compiles this file once per instruction set, with EDM_ISA naming it;
// advance_op.cpp chooses at run time. Nothing from the standard library is instantiated here, for
// the reason given in hd.h.
#include "advance.h"
#include "advance_op.h"
#include "half.h"
#include "normal_op.h"

#define EDM_JOIN_(a, b) a##b
#define EDM_JOIN(a, b) EDM_JOIN_(a, b)

namespace edm {
namespace {

constexpr int W = kCpuRun;
constexpr int kMostInterleaved = 4;    // channels of an image or a latent

template <class S>
S* pointer(const Buffer& t, std::int64_t offset) {
    return reinterpret_cast<S*>(t.address) + offset;
}

// One channel of n pixels, and back.
template <class S>
void gather(const S* from, std::int64_t stride, int n, S* __restrict__ to) {
    if (stride == 1) {
        memcpy(to, from, static_cast<std::size_t>(n) * sizeof(S));
    } else {
        for (int i = 0; i < n; ++i) to[i] = from[i * stride];
    }
}

template <class S>
void scatter(const S* __restrict__ from, std::int64_t stride, int n, S* to) {
    if (stride == 1) {
        memcpy(to, from, static_cast<std::size_t>(n) * sizeof(S));
    } else {
        for (int i = 0; i < n; ++i) to[i * stride] = from[i];
    }
}

void widen(const std::uint16_t* half, Dtype dtype, int n, float* __restrict__ to) {
    if (dtype == kFloat16) {
        for (int i = 0; i < n; ++i) to[i] = f16_to_float(half[i]);
    } else {
        for (int i = 0; i < n; ++i) to[i] = bf16_to_float(half[i]);
    }
}

void narrow(const float* __restrict__ from, Dtype dtype, int n, std::uint16_t* __restrict__ half) {
    if (dtype == kFloat16) {
        for (int i = 0; i < n; ++i) half[i] = float_to_f16(from[i]);
    } else {
        for (int i = 0; i < n; ++i) half[i] = float_to_bf16(from[i]);
    }
}

// The planes of one run of interleaved pixels, as floats.
struct Planes {
    float F[kMostInterleaved][W], G[kMostInterleaved][W], net[kMostInterleaved][W];
};

// Interleaved pixels are converted as they lie and then taken apart, whole pixels at a time: a known stride vectorises,
// and every line is read once.
template <int C>
void take_apart(const Buffer& t, std::int64_t offset, int n, float (&to)[kMostInterleaved][W]) {
    float room[C * W];
    const float* from = room;
    if (t.dtype == kFloat32) {
        from = pointer<const float>(t, offset);
    } else {
        widen(pointer<const std::uint16_t>(t, offset), t.dtype, C * n, room);
    }
    for (int i = 0; i < n; ++i) {
        for (int c = 0; c < C; ++c) to[c][i] = from[i * C + c];
    }
}

template <int C>
void put_together(const float (&from)[kMostInterleaved][W], int n, const Buffer& t, std::int64_t offset) {
    float room[C * W];
    float* to = t.dtype == kFloat32 ? pointer<float>(t, offset) : room;
    for (int i = 0; i < n; ++i) {
        for (int c = 0; c < C; ++c) to[i * C + c] = from[c][i];
    }
    if (t.dtype != kFloat32) {
        narrow(room, t.dtype, C * n, pointer<std::uint16_t>(t, offset));
    }
}

// Where the lanes of one run lie; lane 0 is the run's first that is not idle.
template <class T>
struct CpuIo {
    const AdvanceCall& call;
    std::int64_t b, c, pixel, element;   // element: of the sample, in contiguous order
    int n, skipped;                      // skipped: idle lanes before lane 0, whose noise is drawn in vain
    Planes* planes;                      // F and net_in of interleaved pixels, or null

    std::int64_t size() const { return call.channels * call.pixels; }
    T* x_at() const { return reinterpret_cast<T*>(call.x) + b * size() + element; }
    T* slot_at(int j) const { return reinterpret_cast<T*>(call.slots) + (j * call.samples + b) * size() + element; }

    const T* x(T (&)[W]) const { return x_at(); }
    const T* slot(int j, T (&)[W]) const { return slot_at(j); }
    const double* F(double (&room)[W]) const { return output(call.F, room); }
    const double* G(double (&room)[W]) const { return output(call.G, room); }
    const float* F(float (&room)[W]) const { return planes != nullptr ? planes->F[c] : output(call.F, room); }
    const float* G(float (&room)[W]) const { return planes != nullptr ? planes->G[c] : output(call.G, room); }
    const float* known(float (&)[W]) const {
        return reinterpret_cast<const float*>(call.known) + b * size() + element;
    }
    double guide_scale() const { return reinterpret_cast<const double*>(call.guide_scale)[b]; }

    const double* output(const Buffer& t, double (&room)[W]) const {
        gather(pointer<const double>(t, offset_of(t, b, c, pixel)), t.pixel, n, room);
        return room;
    }
    const float* output(const Buffer& t, float (&room)[W]) const {
        const std::int64_t offset = offset_of(t, b, c, pixel);
        if (t.dtype == kFloat32) {
            gather(pointer<const float>(t, offset), t.pixel, n, room);
        } else {
            std::uint16_t half[W];
            gather(pointer<const std::uint16_t>(t, offset), t.pixel, n, half);
            widen(half, t.dtype, n, room);
        }
        return room;
    }

    T* x_out(T (&)[W]) const { return x_at(); }
    T* slot_out(int j, T (&)[W]) const { return slot_at(j); }
    double* net_out(double (&room)[W]) const { return room; }
    float* net_out(float (&room)[W]) const { return planes != nullptr ? planes->net[c] : room; }
    void store_x(const T*) const {}
    void store_slot(int, const T*) const {}
    template <class S>
    void scatter_copies(const S* v) const {
        for (std::int64_t j = 0; j < call.copies; ++j) {
            const std::int64_t offset = offset_of(call.net_in, b + j * call.samples, c, pixel);
            scatter(v, call.net_in.pixel, n, pointer<S>(call.net_in, offset));
        }
    }
    void store_net(const double* v) const { scatter_copies(v); }
    void store_net(const float* v) const {
        if (planes != nullptr) {
            return;
        }
        if (call.net_in.dtype == kFloat32) {
            scatter_copies(v);
        } else {
            std::uint16_t half[W];
            narrow(v, call.net_in.dtype, n, half);
            scatter_copies(half);
        }
    }

    void latents(T (&z)[W]) const { noise(call.latents, b, 0, z); }
    void eps(std::int64_t draw, T (&z)[W]) const {
        noise(call.eps, draw * call.samples + b, static_cast<std::uint64_t>(draw) + 1, z);
    }

    // Sample `index` of a buffer, or a draw of the sample's seed where there is no buffer.
    void noise(const Buffer& t, std::int64_t index, std::uint64_t draw, T (&z)[W]) const {
        const std::int64_t first = index * size() + element;
        if (t.address == 0) {
            float drawn[W];
            const std::uint64_t seed = reinterpret_cast<const std::uint64_t*>(call.seeds)[b];
            EDM_JOIN(normal_fill_, EDM_ISA)(seed, draw, static_cast<std::uint64_t>(element - skipped) / 4,
                                            drawn, skipped + n);
            for (int i = 0; i < n; ++i) z[i] = static_cast<T>(drawn[skipped + i]);
        } else if (t.dtype == kFloat64) {
            const auto* from = pointer<const double>(t, first);
            for (int i = 0; i < n; ++i) z[i] = static_cast<T>(from[i]);
        } else {
            const auto* from = pointer<const float>(t, first);
            for (int i = 0; i < n; ++i) z[i] = static_cast<T>(from[i]);
        }
    }
};

template <class T>
CpuIo<T> io_of(const AdvanceCall& call, std::int64_t b, std::int64_t c, std::int64_t index, Planes* planes) {
    const Run run = run_of(call.pixels, c, index, W);
    const std::int64_t pixel = run.first + run.low;
    return {call, b, c, pixel, c * call.pixels + pixel, run.high - run.low, run.low, planes};
}

template <class T>
bool advance_planes(const AdvanceCall& call, const Row& row, std::int64_t b, std::int64_t index, Planes* planes) {
    bool bad = false;
    for (std::int64_t c = 0; c < call.channels; ++c) {
        const CpuIo<T> io = io_of<T>(call, b, c, index, planes);
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
    if (row.op != kBegin) {
        take_apart<C>(call.F, offset_of(call.F, b, 0, io.pixel), io.n, planes.F);
        if (row.guide_G != 0) {
            take_apart<C>(call.G, offset_of(call.G, b, 0, io.pixel), io.n, planes.G);
        }
    }
    const bool bad = advance_planes<T>(call, row, b, index, &planes);
    for (std::int64_t j = 0; j < call.copies && row.evaluate != 0; ++j) {
        put_together<C>(planes.net, io.n, call.net_in, offset_of(call.net_in, b + j * call.samples, 0, io.pixel));
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
}

}  // namespace edm
