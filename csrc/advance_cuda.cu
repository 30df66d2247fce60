// `advance` on a CUDA device: one launch, four elements a thread, noise drawn in registers (and one
// launch before it where guidance may rescale). The arithmetic is advance.h and guide.h; this file
// only says where the elements lie.
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
        load_output(call.F, room);
        return room;
    }
    template <class P>
    EDM_DEVICE const P* G(P (&room)[kLanes]) const {
        load_output(call.G, room);
        return room;
    }
    EDM_DEVICE const float* known(float (&room)[kLanes]) const {
        if (call.known != 0) {
            load4(reinterpret_cast<const float*>(call.known) + b * size() + element, 1, lanes, room);
        }
        return room;
    }
    EDM_DEVICE double guide_scale() const { return reinterpret_cast<const double*>(call.guide_scale)[b]; }

    EDM_DEVICE T* x_out(T (&room)[kLanes]) const { return room; }
    EDM_DEVICE T* slot_out(int, T (&room)[kLanes]) const { return room; }
    template <class P>
    EDM_DEVICE P* net_out(P (&room)[kLanes]) const {
        return room;
    }
    EDM_DEVICE void store_x(const T* from) const { store4(x_at(), 1, lanes, from); }
    EDM_DEVICE void store_slot(int j, const T* from) const { store4(slot_at(j), 1, lanes, from); }

    EDM_DEVICE void load_output(const Buffer& t, double (&to)[kLanes]) const {
        load4(pointer<const double>(t, offset_of(t, b, c, first)), t.pixel, lanes, to);
    }

    EDM_DEVICE void load_output(const Buffer& t, float (&to)[kLanes]) const {
        const std::int64_t at = offset_of(t, b, c, first);
        if (t.dtype == kFloat32) {
            load4(pointer<const float>(t, at), t.pixel, lanes, to);
            return;
        }
        std::uint16_t half[kLanes];
        load4(pointer<const std::uint16_t>(t, at), t.pixel, lanes, half);
        const bool f16 = t.dtype == kFloat16;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) to[i] = f16 ? f16_to_float(half[i]) : bf16_to_float(half[i]);
    }

    template <class S>
    EDM_DEVICE void store_copies(const S* from) const {
        for (std::int64_t j = 0; j < call.copies; ++j) {
            const std::int64_t at = offset_of(call.net_in, b + j * call.samples, c, first);
            store4(pointer<S>(call.net_in, at), call.net_in.pixel, lanes, from);
        }
    }

    EDM_DEVICE void store_net(const double* v) const { store_copies(v); }
    EDM_DEVICE void store_net(const float* v) const {
        if (call.net_in.dtype == kFloat32) {
            store_copies(v);
            return;
        }
        std::uint16_t half[kLanes];
        const bool f16 = call.net_in.dtype == kFloat16;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) half[i] = f16 ? float_to_f16(v[i]) : float_to_bf16(v[i]);
        store_copies(half);
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

// The sample's row into shared memory, so that its 39 numbers cost one round trip; false: not one to carry out.
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
    for (std::int64_t j = 0; j < call.copies && tile == 0 && first && row.evaluate != 0; ++j) {
        reinterpret_cast<float*>(call.c_noise)[b + j * call.samples] = static_cast<float>(row.c_noise);
    }
    if (__syncthreads_or(bad) && first) report(call, b, which);
}

// One element of a network output.
struct ElementIo {
    const AdvanceCall& call;
    std::int64_t b, c, pixel;

    template <class P>
    EDM_DEVICE const P* F(P (&room)[1]) const { return read(call.F, room); }
    template <class P>
    EDM_DEVICE const P* G(P (&room)[1]) const { return read(call.G, room); }

    EDM_DEVICE const double* read(const Buffer& t, double (&room)[1]) const {
        room[0] = *pointer<const double>(t, offset_of(t, b, c, pixel));
        return room;
    }
    EDM_DEVICE const float* read(const Buffer& t, float (&room)[1]) const {
        const std::int64_t at = offset_of(t, b, c, pixel);
        if (t.dtype == kFloat32) {
            room[0] = *pointer<const float>(t, at);
        } else {
            const std::uint16_t half = *pointer<const std::uint16_t>(t, at);
            room[0] = t.dtype == kFloat16 ? f16_to_float(half) : bf16_to_float(half);
        }
        return room;
    }
};

// What one lane of guide.h sums of a sample.
template <class P>
EDM_DEVICE GuideSums lane_sums(const AdvanceCall& call, const Row& row, std::int64_t b, unsigned lane) {
    GuideSums sums{};
    for (std::int64_t e = lane; e < call.channels * call.pixels; e += kGuideLanes) {
        const ElementIo io{call, b, e / call.pixels, e % call.pixels};
        P plain_room[1], guided_room[1];
        const double plain = *io.F(plain_room), seen = *guided<P, 1>(row, 1, io, guided_room);
        sums = added(sums, {plain, plain * plain, seen, seen * seen});
    }
    return sums;
}

// The scale of one sample a block, one lane a thread; rows that do not rescale leave it as it is.
__global__ void __launch_bounds__(kGuideLanes, 1) guide_scale_kernel(const __grid_constant__ AdvanceCall call) {
    __shared__ Row row;
    __shared__ GuideSums lanes[kGuideLanes];
    const std::int64_t b = blockIdx.x;
    const std::int64_t which = reinterpret_cast<const std::int64_t*>(call.base_row)[b] + call.k;
    if (!fetch_row(call, which, row) || row.op == kBegin || row.rescale == 0) {
        return;
    }
    const unsigned lane = threadIdx.x;
    lanes[lane] = call.F.dtype == kFloat64 ? lane_sums<double>(call, row, b, lane) : lane_sums<float>(call, row, b, lane);
    for (unsigned width = kGuideLanes / 2; width > 0; width /= 2) {
        __syncthreads();
        GuideSums pair{};
        if (lane < width) pair = added(lanes[2 * lane], lanes[2 * lane + 1]);
        __syncthreads();
        if (lane < width) lanes[lane] = pair;
    }
    if (lane == 0) {
        const auto elements = static_cast<double>(call.channels * call.pixels);
        reinterpret_cast<double*>(call.guide_scale)[b] = guide_scale(lanes[0], elements, row.rescale);
    }
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
    if (call.guide_scale != 0) {
        launch("guide_scale", guide_scale_kernel, call.samples, dim3(kGuideLanes), device, stream, call);
    }
    launch("advance", call.state_dtype == kFloat64 ? advance_kernel<double> : advance_kernel<float>,
           call.samples * tiles, threads, device, stream, call, tiles);
}

}  // namespace edm
