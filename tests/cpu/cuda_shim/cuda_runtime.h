// Just enough of CUDA for g++ to compile csrc/*.cu and run their kernels on the host, one host
// thread a CUDA thread. For tests of a kernel's indexing where there is no GPU.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define EDM_DEVICE inline

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) double2 { double x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };

extern thread_local dim3 threadIdx;
extern dim3 blockIdx, blockDim;
void __syncthreads();
int __syncthreads_or(int value);

template <class Vector>
inline void __stwb(Vector* at, Vector value) { *at = value; }

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "the shim does not fail"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, int, cudaStream_t);
