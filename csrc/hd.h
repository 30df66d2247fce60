// What lets one header be compiled by g++ and by nvcc.
//
// Every function in the host/device headers is `EDM_HD`: internal linkage and inline. Internal
// linkage matters on the host too: the same header is compiled once per instruction set, and a
// shared (COMDAT) copy could be linked from the AVX-512 object into code that runs anywhere.
//
// The headers promise bits, so whoever includes them compiles without contraction and without
// reassociation: g++ `-ffp-contract=off`, nvcc `--fmad=false`, never fast-math.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define EDM_HD static __host__ __device__ __forceinline__
#define EDM_DEVICE __device__ __forceinline__
#else
#define EDM_HD static inline
#endif

// Before a loop over a thread's elements, so that on a GPU they stay in registers.
#ifdef __CUDA_ARCH__
#define EDM_UNROLL _Pragma("unroll")
#else
#define EDM_UNROLL
#endif

// Before a loop whose pointers are equal or apart, never a few elements off each other: it vectorises.
#ifdef __CUDA_ARCH__
#define EDM_SAME_INDEX
#elif defined(__clang__)
#define EDM_SAME_INDEX _Pragma("clang loop vectorize(assume_safety)")
#else
#define EDM_SAME_INDEX _Pragma("GCC ivdep")
#endif

// A name made of two, whatever macros these are: of what is compiled once per instruction set, with EDM_ISA.
#define EDM_JOIN_(a, b) a##b
#define EDM_JOIN(a, b) EDM_JOIN_(a, b)

namespace edm {

EDM_HD std::int32_t bits_of(float x) {
    std::int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}

EDM_HD float float_of(std::int32_t i) {
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}

// Correctly rounded on both sides, whatever nvcc's -prec-sqrt says.
EDM_HD float sqrt_rn(float x) {
#ifdef __CUDA_ARCH__
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}

EDM_HD double sqrt_rn(double x) {
#ifdef __CUDA_ARCH__
    return __dsqrt_rn(x);
#else
    return __builtin_sqrt(x);
#endif
}

}  // namespace edm
