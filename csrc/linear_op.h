// A float32 linear layer on the CPU for few rows: the networks' embeddings. out = act(x W^T + bias + add).
//
// An element is the sum of 16 lanes, each over every 16th input, whatever the number of rows and of threads: so a
// sample's bits do not depend on its batch, as those of torch's product do (a batch of 1, of 2 or 3, and larger ones give
// three results with MKL).
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace edm {

// x [rows, inputs], weight [outputs, inputs], bias [outputs] or 0, add [rows, outputs] or 0, out [rows, outputs]:
// addresses of float32, dense.
struct LinearCall {
    std::int64_t rows = 0, inputs = 0, outputs = 0;
    std::uintptr_t x = 0, weight = 0, bias = 0, add = 0, out = 0;
    bool silu = false;

    std::array<std::uintptr_t*, 5> addresses() { return {&x, &weight, &bias, &add, &out}; }
};

// linear_isa.cpp, compiled once for each instruction set: outputs [begin, end).
using LinearLoop = void (*)(const LinearCall& call, std::int64_t begin, std::int64_t end);
void linear_generic(const LinearCall&, std::int64_t, std::int64_t);
void linear_avx2(const LinearCall&, std::int64_t, std::int64_t);
void linear_avx512(const LinearCall&, std::int64_t, std::int64_t);

// isa: "auto" or one of normal_isas(). Throws std::invalid_argument before anything is written.
void linear_cpu(const LinearCall& call, std::int64_t threads, const std::string& isa);

}  // namespace edm
