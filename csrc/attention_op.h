// Attention on the CPU: out = softmax(q k^T / sqrt(channels)) v of every head of every sample. Everything within is float32,
// whatever q is; scores of a block of queries at a time, never all.
//
// A query's arithmetic is the same whoever computes it: the bits of an image depend neither on its batch nor on the number of
// threads.
#pragma once

#include <array>
#include <string>

#include "advance_call.h"
#include "panels.h"

namespace edm {

// q, k, v: [samples, heads, length, channels] of one dtype with the channels side by side, strides in elements, the same for
// all three; out the same with strides of its own.
struct AttentionCall {
    std::int64_t samples = 0, heads = 0, length = 0, channels = 0;
    Dtype dtype = kFloat32;
    std::uintptr_t q = 0, k = 0, v = 0, out = 0;
    std::int64_t sample_stride = 0, head_stride = 0, row_stride = 0;
    std::int64_t out_sample_stride = 0, out_head_stride = 0, out_row_stride = 0;

    std::array<std::uintptr_t*, 4> addresses() { return {&q, &k, &v, &out}; }
};

// Where things lie in a worker's scratch, in floats: the keys in panels of kPanel keys, [panels][channels][kPanel], the values
// in panels of kPanel channels, [panels][length][kPanel], a block of queries and one of scores as rows of runs, a panel of
// products, and per query the factor of its output. Lengths and channels are padded to whole panels.
struct AttentionScratch {
    std::int64_t values, queries, scores, weights, products, factors, size;
};
AttentionScratch attention_scratch(const AttentionCall& call);
std::int64_t attention_block(std::int64_t length);    // queries

// attention_isa.cpp, compiled once for each instruction set. Queries [first, last) of a head of a sample. scratch: aligned to
// 64 bytes.
using AttentionLoop = void (*)(const AttentionCall& call, std::int64_t sample, std::int64_t head, std::int64_t first,
                               std::int64_t last, float* scratch);
void attention_generic(const AttentionCall&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*);
void attention_avx2(const AttentionCall&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*);
void attention_avx512(const AttentionCall&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*);

// isa: "auto" or one of normal_isas(). Throws std::invalid_argument before anything is written.
void attention_cpu(const AttentionCall& call, std::int64_t threads, const std::string& isa);

}  // namespace edm
