// `advance` on a CUDA device: one launch, four elements a thread, noise drawn in registers. The
// arithmetic is advance.h; this file only says where the elements lie.
#include "advance.h"
#include "advance_op.h"
#include "cuda_common.cuh"
#include "cuda_ops.h"
#include "half.h"

namespace edm {
namespace {

template <class S>
EDM_DEVICE S* pointer(const Buffer& t, std::int64_t offset) {
    return reinterpret_cast<S*>(t.address) + offset;
}

// Where the four lanes of a thread lie: pixels first ... first + 3 of plane c, elements from `element` on.
template <class T>
struct DeviceIo {
    const AdvanceCall& call;
    std::int64_t b, c, first, element;
    Lanes lanes;

    EDM_DEVICE std::int64_t size() const { return call.channels * call.pixels; }
    EDM_DEVICE T* x_at() const { return reinterpret_cast<T*>(call.x) + b * size() + element; }
    EDM_DEVICE T* slot_at(int j) const {
        return reinterpret_cast<T*>(call.slots) + (j * call.samples + b) * size() + element;
    }

    EDM_DEVICE const T* x(T (&room)[kLanes]) const {
        load4<T>(x_at(), 1, lanes, room);
        return room;
    }
    EDM_DEVICE const T* slot(int j, T (&room)[kLanes]) const {
        load4<T>(slot_at(j), 1, lanes, room);
        return room;
    }
    template <class P>
    EDM_DEVICE const P* F(P (&room)[kLanes]) const {
        load_F(room);
        return room;
    }

    EDM_DEVICE T* x_out(T (&room)[kLanes]) const { return room; }
    EDM_DEVICE T* slot_out(int, T (&room)[kLanes]) const { return room; }
    template <class P>
    EDM_DEVICE P* net_out(P (&room)[kLanes]) const {
        return room;
    }
    EDM_DEVICE void store_x(const T* from) const { store4(x_at(), 1, lanes, from); }
    EDM_DEVICE void store_slot(int j, const T* from) const { store4(slot_at(j), 1, lanes, from); }

    EDM_DEVICE void load_F(double (&to)[kLanes]) const {
        load4(pointer<const double>(call.F, offset_of(call.F, b, c, first)), call.F.pixel, lanes, to);
    }

    EDM_DEVICE void load_F(float (&to)[kLanes]) const {
        const std::int64_t at = offset_of(call.F, b, c, first);
        if (call.F.dtype == kFloat32) {
            load4(pointer<const float>(call.F, at), call.F.pixel, lanes, to);
            return;
        }
        std::uint16_t half[kLanes];
        load4(pointer<const std::uint16_t>(call.F, at), call.F.pixel, lanes, half);
        const bool f16 = call.F.dtype == kFloat16;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) to[i] = f16 ? f16_to_float(half[i]) : bf16_to_float(half[i]);
    }

    EDM_DEVICE void store_net(const double* v) const {
        store4(pointer<double>(call.net_in, offset_of(call.net_in, b, c, first)), call.net_in.pixel, lanes, v);
    }

    EDM_DEVICE void store_net(const float* v) const {
        const std::int64_t at = offset_of(call.net_in, b, c, first);
        if (call.net_in.dtype == kFloat32) {
            store4(pointer<float>(call.net_in, at), call.net_in.pixel, lanes, v);
            return;
        }
        std::uint16_t half[kLanes];
        const bool f16 = call.net_in.dtype == kFloat16;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) half[i] = f16 ? float_to_f16(v[i]) : float_to_bf16(v[i]);
        store4(pointer<std::uint16_t>(call.net_in, at), call.net_in.pixel, lanes, half);
    }

    EDM_DEVICE void latents(T (&z)[kLanes]) const { noise(call.latents, b, 0, z); }
    EDM_DEVICE void eps(std::int64_t draw, T (&z)[kLanes]) const {
        noise(call.eps, draw * call.samples + b, static_cast<std::uint64_t>(draw) + 1, z);
    }

    // Sample `index` of a buffer, or a draw of the sample's seed where there is no buffer.
    EDM_DEVICE void noise(const Buffer& t, std::int64_t index, std::uint64_t draw, T (&z)[kLanes]) const {
        const std::int64_t at = index * size() + element;
        if (t.address != 0 && t.dtype == kFloat64) {
            double buffered[kLanes];
            load4(pointer<const double>(t, at), 1, lanes, buffered);
#pragma unroll
            for (int i = 0; i < kLanes; ++i) z[i] = static_cast<T>(buffered[i]);
            return;
        }
        float drawn[kLanes];
        if (t.address != 0) {
            load4(pointer<const float>(t, at), 1, lanes, drawn);
        } else {
            const std::uint64_t seed = reinterpret_cast<const std::uint64_t*>(call.seeds)[b];
            normal4(seed, draw, static_cast<std::uint64_t>(element) / 4, drawn);
        }
#pragma unroll
        for (int i = 0; i < kLanes; ++i) z[i] = static_cast<T>(drawn[i]);
    }
};

EDM_DEVICE void report(const AdvanceCall& call, std::int64_t b, std::int64_t row) {
    auto* bad_row = reinterpret_cast<std::int64_t*>(call.bad_row);
    if (bad_row[b] < 0) {
        bad_row[b] = row < 0 ? 0 : row;    // every block that gets here writes the same
    }
}

// The sample's row into shared memory, so that its 36 numbers cost one round trip; false: not one to carry out.
EDM_DEVICE bool fetch_row(const AdvanceCall& call, std::int64_t which, Row& row) {
    if (which < 0 || which >= call.rows) {
        return false;
    }
    const auto* from = reinterpret_cast<const double*>(call.table) + which * kColumns;
    for (unsigned i = threadIdx.y * blockDim.x + threadIdx.x; i < kColumns; i += blockDim.x * blockDim.y) {
        reinterpret_cast<double*>(&row)[i] = from[i];
    }
    __syncthreads();
    return problem_of(row, call) == kFine;
}

// A block holds blockDim.x runs of four pixels of every plane of one sample; threadIdx.y shares out the planes,
// so that a channels_last line is read and written by neighbours.
template <class T>
__global__ void __launch_bounds__(256, 1) advance_kernel(const __grid_constant__ AdvanceCall call, std::int64_t tiles) {
    __shared__ Row row;
    const std::int64_t b = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const std::int64_t which = reinterpret_cast<const std::int64_t*>(call.base_row)[b] + call.k;
    const bool first = threadIdx.x == 0 && threadIdx.y == 0;
    if (!fetch_row(call, which, row)) {
        if (first) report(call, b, which);
        return;
    }
    bool bad = false;
    for (std::int64_t c = threadIdx.y; c < call.channels; c += blockDim.y) {
        const Run run = run_of(call.pixels, c, tile * blockDim.x + threadIdx.x, kLanes);
        if (run.low < run.high) {
            const DeviceIo<T> io{call, b, c, run.first, c * call.pixels + run.first, {run.low, run.high}};
            bad |= advance_run<T, kLanes>(row, kLanes, run.low, run.high, io);
        }
    }
    if (tile == 0 && first && row.evaluate != 0) {
        reinterpret_cast<float*>(call.c_noise)[b] = static_cast<float>(row.c_noise);
    }
    if (__syncthreads_or(bad) && first) report(call, b, which);
}

}  // namespace

void advance_cuda(AdvanceCall call, int device, std::uintptr_t stream) {
    if (call.samples == 0 || call.channels == 0 || call.pixels == 0) {
        return;
    }
    check_call(call);
    fold_channels(call);
    const unsigned planes = call.channels < 4 ? static_cast<unsigned>(call.channels) : 4;
    const dim3 threads(planes == 1 ? kThreads : kThreads / 2, planes);
    const std::int64_t tiles = (run_count(call.channels, call.pixels, kLanes) - 1) / threads.x + 1;
    launch("advance", call.state_dtype == kFloat64 ? advance_kernel<double> : advance_kernel<float>,
           call.samples * tiles, threads, device, stream, call, tiles);
}

}  // namespace edm
