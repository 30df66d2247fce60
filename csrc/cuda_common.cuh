// What the CUDA operations share: four elements a thread, moved 16 bytes at a time where they lie
// aligned, four normals a Philox counter, and a launch whose failure is an exception.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "normal.h"

namespace edm {

constexpr int kLanes = 4;      // a thread's elements: one Philox counter's
constexpr int kThreads = 128;  // of a block, unless its planes say otherwise

struct Lanes {
    int low, high;             // those of the four that exist
    EDM_DEVICE bool all() const { return low == 0 && high == kLanes; }
    EDM_DEVICE bool has(int i) const { return i >= low && i < high; }
};

// As many elements as a 16-byte access holds, at most four.
template <class S> struct VectorOf;
template <> struct VectorOf<double> { using type = double2; };
template <> struct VectorOf<float> { using type = float4; };
template <> struct VectorOf<std::uint16_t> { using type = ushort4; };

template <class S>
union Pack {
    using Vector = typename VectorOf<S>::type;
    static constexpr int size = sizeof(Vector) / sizeof(S);
    Vector vector;
    S v[size];
};

template <class S>
EDM_DEVICE bool whole_packs(const S* at, Lanes lanes) {
    return lanes.all() && reinterpret_cast<std::uintptr_t>(at) % sizeof(Pack<S>) == 0;
}

// Lanes that do not exist read as 0.
template <class S>
EDM_DEVICE void load4(const S* at, std::int64_t stride, Lanes lanes, S (&to)[kLanes]) {
    if (stride == 1 && whole_packs(at, lanes)) {
#pragma unroll
        for (int j = 0; j < kLanes / Pack<S>::size; ++j) {
            Pack<S> pack;
            pack.vector = reinterpret_cast<const typename Pack<S>::Vector*>(at)[j];
#pragma unroll
            for (int i = 0; i < Pack<S>::size; ++i) to[j * Pack<S>::size + i] = pack.v[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) to[i] = lanes.has(i) ? at[i * stride] : S(0);
    }
}

template <class S>
EDM_DEVICE void store4(S* at, std::int64_t stride, Lanes lanes, const S* from) {
    if (stride == 1 && whole_packs(at, lanes)) {
#pragma unroll
        for (int j = 0; j < kLanes / Pack<S>::size; ++j) {
            Pack<S> pack;
#pragma unroll
            for (int i = 0; i < Pack<S>::size; ++i) pack.v[i] = from[j * Pack<S>::size + i];
            // Not a plain assignment: nvcc 13 merges those with the scalar stores below, into scalar stores.
            __stwb(reinterpret_cast<typename Pack<S>::Vector*>(at) + j, pack.vector);
        }
    } else {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
            if (lanes.has(i)) at[i * stride] = from[i];
        }
    }
}

// The normals of elements 4 * quad ... 4 * quad + 3.
EDM_DEVICE void normal4(std::uint64_t seed, std::uint64_t draw, std::uint64_t quad, float (&z)[kLanes]) {
    const auto low = [](std::uint64_t word) { return static_cast<std::uint32_t>(word); };
    const auto high = [](std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); };
    const Words w = philox4x32(low(seed), high(seed), {low(quad), high(quad), low(draw), high(draw)});
    const Pair a = box_muller(w.w0, w.w1), b = box_muller(w.w2, w.w3);
    z[0] = a.first, z[1] = a.second, z[2] = b.first, z[3] = b.second;
}

inline void check_cuda(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        cudaGetLastError();    // so that the next call does not report it again
        throw std::runtime_error(std::string(what) + ": CUDA: " + cudaGetErrorString(error));
    }
}

// Makes a device current for the calling thread while it lives.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check_cuda(cudaGetDevice(&before_), "current device");
        check_cuda(cudaSetDevice(device), "device");
    }
    ~OnDevice() { cudaSetDevice(before_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = 0;
};

// Blocks are counted in one dimension: only that one reaches 2^31 - 1.
template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), std::int64_t blocks, dim3 threads, int device,
            std::uintptr_t stream, Arguments... arguments) {
    if (blocks > 0x7fffffff) {
        throw std::invalid_argument(std::string(what) + ": needs " + std::to_string(blocks) +
                                    " blocks of threads; CUDA allows 2147483647: use smaller batches");
    }
    const OnDevice guard(device);
    void* addresses[] = {&arguments...};
    check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)), threads,
                                addresses, 0, reinterpret_cast<cudaStream_t>(stream)),
               what);
}

}  // namespace edm
