// Philox + Box-Muller over a batch on a CUDA device: one thread a counter.
#include "cuda_common.cuh"
#include "cuda_ops.h"
#include "normal_op.h"

namespace edm {
namespace {

__global__ void __launch_bounds__(kThreads)
    normal_kernel(const std::uint64_t* seeds, const std::uint64_t* draws, float* out, std::int64_t elements,
                  std::int64_t tiles) {
    const std::int64_t b = blockIdx.x / tiles;
    const std::int64_t quad = (blockIdx.x % tiles) * kThreads + threadIdx.x, left = elements - kLanes * quad;
    if (left > 0) {
        float z[kLanes];
        normal4(seeds[b], draws[b], static_cast<std::uint64_t>(quad), z);
        store4(out + b * elements + kLanes * quad, 1, {0, left < kLanes ? static_cast<int>(left) : kLanes}, z);
    }
}

}  // namespace

void normal_cuda(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
                 std::int64_t elements, int device, std::uintptr_t stream) {
    check_normal(seeds, draws, out, samples, elements);
    if (samples > 0 && elements > 0) {
        const std::int64_t tiles = (elements - 1) / (kLanes * kThreads) + 1;
        launch("normal", normal_kernel, samples * tiles, dim3(kThreads), device, stream,
               reinterpret_cast<const std::uint64_t*>(seeds), reinterpret_cast<const std::uint64_t*>(draws),
               reinterpret_cast<float*>(out), elements, tiles);
    }
}

}  // namespace edm
