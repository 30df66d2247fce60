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

template <class S>
void gather(const S* from, std::int64_t stride, int n, S* __restrict__ to) {
    if (stride == 1) {
        memcpy(to, from, static_cast<std::size_t>(n) * sizeof(S));
    } else if (stride == 3) {
        for (int i = 0; i < n; ++i) to[i] = from[i * 3];    // a known stride vectorises
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

template <class S>
S* pointer(const Buffer& t, std::int64_t offset) {
    return reinterpret_cast<S*>(t.address) + offset;
}

void read_network(const Buffer& t, std::int64_t offset, int n, double (&out)[W]) {
    gather(pointer<const double>(t, offset), t.pixel, n, out);
}

void write_network(const Buffer& t, std::int64_t offset, int n, const double (&v)[W]) {
    scatter(v, t.pixel, n, pointer<double>(t, offset));
}

void read_network(const Buffer& t, std::int64_t offset, int n, float (&out)[W]) {
    if (t.dtype == kFloat32) {
        gather(pointer<const float>(t, offset), t.pixel, n, out);
        return;
    }
    std::uint16_t half[W];
    gather(pointer<const std::uint16_t>(t, offset), t.pixel, n, half);
    if (t.dtype == kFloat16) {
        for (int i = 0; i < n; ++i) out[i] = f16_to_float(half[i]);
    } else {
        for (int i = 0; i < n; ++i) out[i] = bf16_to_float(half[i]);
    }
}

void write_network(const Buffer& t, std::int64_t offset, int n, const float (&v)[W]) {
    if (t.dtype == kFloat32) {
        scatter(v, t.pixel, n, pointer<float>(t, offset));
        return;
    }
    std::uint16_t half[W];
    if (t.dtype == kFloat16) {
        for (int i = 0; i < n; ++i) half[i] = float_to_f16(v[i]);
    } else {
        for (int i = 0; i < n; ++i) half[i] = float_to_bf16(v[i]);
    }
    scatter(half, t.pixel, n, pointer<std::uint16_t>(t, offset));
}

// Where the lanes of one run lie; lane 0 is the run's first that is not idle.
template <class T>
struct CpuIo {
    const AdvanceCall& call;
    std::int64_t b, c, pixel, element;   // element: of the sample, in contiguous order
    int n, skipped;                      // skipped: idle lanes before lane 0, whose noise is drawn in vain

    std::int64_t size() const { return call.channels * call.pixels; }
    std::size_t bytes() const { return static_cast<std::size_t>(n) * sizeof(T); }
    T* x() const { return reinterpret_cast<T*>(call.x) + b * size() + element; }
    T* slot(int j) const {
        return reinterpret_cast<T*>(call.slots) + (j * call.samples + b) * size() + element;
    }

    void load_x(T (&to)[W]) const { memcpy(to, x(), bytes()); }
    void store_x(const T (&from)[W]) const { memcpy(x(), from, bytes()); }
    void load_slot(int j, T (&to)[W]) const { memcpy(to, slot(j), bytes()); }
    void store_slot(int j, const T (&from)[W]) const { memcpy(slot(j), from, bytes()); }
    template <class P>
    void load_F(P (&to)[W]) const {
        read_network(call.F, offset_of(call.F, b, c, pixel), n, to);
    }
    template <class P>
    void store_net(const P (&v)[W]) const {
        write_network(call.net_in, offset_of(call.net_in, b, c, pixel), n, v);
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
CpuIo<T> io_of(const AdvanceCall& call, std::int64_t b, std::int64_t c, std::int64_t index) {
    const Run run = run_of(call.pixels, c, index, W);
    const std::int64_t pixel = run.first + run.low;
    return {call, b, c, pixel, c * call.pixels + pixel, run.high - run.low, run.low};
}

template <class T>
bool advance_unit(const AdvanceCall& call, const Row& row, std::int64_t b, std::int64_t index) {
    bool bad = false;
    for (std::int64_t c = 0; c < call.channels; ++c) {
        const CpuIo<T> io = io_of<T>(call, b, c, index);
        if (io.n > 0) {
            bad |= advance_run<T, W>(row, io.n, 0, io.n, io);
        }
    }
    return bad;
}

}  // namespace

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
        if (index == 0 && row.evaluate != 0) {
            reinterpret_cast<float*>(call.c_noise)[b] = static_cast<float>(row.c_noise);
        }
        // Atomic because another thread may hold another run of this sample; all write the same row.
        if (bad && __atomic_load_n(&bad_row[b], __ATOMIC_RELAXED) < 0) {
            __atomic_store_n(&bad_row[b], which, __ATOMIC_RELAXED);
        }
    }
}

}  // namespace edm
