// Philox + Box-Muller over a batch: run-time choice of instruction set, threads, argument checks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edm {

// Writes the `count` normals of elements 4*quad, 4*quad + 1, ... of one sample's draw.
using NormalFill = void (*)(std::uint64_t seed, std::uint64_t draw, std::uint64_t quad, float* out,
                            std::int64_t count);

// normal_isa.cpp, compiled once for each. `generic` is always there; the others only on x86-64.
void normal_fill_generic(std::uint64_t, std::uint64_t, std::uint64_t, float*, std::int64_t);
void normal_fill_avx2(std::uint64_t, std::uint64_t, std::uint64_t, float*, std::int64_t);
void normal_fill_avx512(std::uint64_t, std::uint64_t, std::uint64_t, float*, std::int64_t);

// Instruction sets this build has and this processor runs, fastest first.
std::vector<std::string> normal_isas();

// The instruction set to use for `isa`: "auto", the fastest, or one of normal_isas(). Throws std::invalid_argument.
std::string choose_isa(const std::string& isa);

// EDM_LOOP(winograd_, isa): the one of winograd_generic, _avx2 and _avx512 that `isa` asks for.
#ifdef EDM_X86_64
#define EDM_LOOP(name, isa) edm::chosen(edm::choose_isa(isa), name##generic, name##avx2, name##avx512)
#else
#define EDM_LOOP(name, isa) edm::chosen(edm::choose_isa(isa), name##generic, name##generic, name##generic)
#endif
template <class Loop>
Loop chosen(const std::string& isa, Loop generic, Loop avx2, Loop avx512) {
    return isa == "avx512" ? avx512 : isa == "avx2" ? avx2 : generic;
}

// Throws std::invalid_argument unless these are sizes and, where there is work, addresses `normal` can use.
void check_normal(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
                  std::int64_t elements);

// out[b, e] = normal number of (seeds[b], draws[b], 4 * first_quad + e), b < samples, e < elements.
// The three pointers are addresses (the extension does not link torch). The bits depend neither on
// `threads` nor on `isa` ("auto": the fastest). Throws std::invalid_argument.
void normal(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
            std::int64_t elements, std::int64_t threads, const std::string& isa,
            std::int64_t first_quad);

}  // namespace edm
