// Runs the CUDA kernels on the host: see cuda_runtime.h. Blocks one after the other, their threads together.
#include "cuda_runtime.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "../../../csrc/advance_cuda.cu"
#include "../../../csrc/normal_cuda.cu"

thread_local dim3 threadIdx;
dim3 blockIdx, blockDim;
static pthread_barrier_t barrier;
static std::atomic<int> any;

void __syncthreads() { pthread_barrier_wait(&barrier); }

int __syncthreads_or(int value) {
    any |= value;
    pthread_barrier_wait(&barrier);
    return any;
}

static void run_block(const std::function<void()>& kernel) {
    any = 0;
    std::vector<std::thread> threads;
    for (unsigned y = 0; y < blockDim.y; ++y) {
        for (unsigned x = 0; x < blockDim.x; ++x) {
            threads.emplace_back([&kernel, x, y] {
                threadIdx = dim3(x, y);
                kernel();
            });
        }
    }
    for (std::thread& thread : threads) thread.join();
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, int, cudaStream_t) {
    blockDim = block;
    pthread_barrier_init(&barrier, nullptr, block.x * block.y);
    std::function<void()> body;
    if (kernel == reinterpret_cast<const void*>(&edm::normal_kernel)) {
        body = [=] {
            edm::normal_kernel(*static_cast<const std::uint64_t**>(arguments[0]),
                               *static_cast<const std::uint64_t**>(arguments[1]), *static_cast<float**>(arguments[2]),
                               *static_cast<std::int64_t*>(arguments[3]), *static_cast<std::int64_t*>(arguments[4]));
        };
    } else if (kernel == reinterpret_cast<const void*>(&edm::guide_scale_kernel)) {
        body = [=] { edm::guide_scale_kernel(*static_cast<edm::AdvanceCall*>(arguments[0])); };
    } else {
        const auto advance = reinterpret_cast<void (*)(edm::AdvanceCall, std::int64_t)>(const_cast<void*>(kernel));
        body = [=] {
            advance(*static_cast<edm::AdvanceCall*>(arguments[0]), *static_cast<std::int64_t*>(arguments[1]));
        };
    }
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(body);
    pthread_barrier_destroy(&barrier);
    return cudaSuccess;
}

static thread_local std::string message;

extern "C" const char* shim_advance(const edm::AdvanceCall* call) {
    try {
        edm::advance_cuda(*call, 0, 0);
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

extern "C" void shim_normal(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
                            std::int64_t elements) {
    edm::normal_cuda(seeds, draws, out, samples, elements, 0, 0);
}
