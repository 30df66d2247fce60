#include "attention_op.h"

#include <algorithm>
#include <stdexcept>

#include "normal_op.h"
#include "parallel.h"
#include "scratch.h"

namespace edm {
namespace {

// Products a thread must have to be worth waking: some 20 us of work.
constexpr std::int64_t kProductsPerThread = 2000000;
constexpr std::int64_t kScores = 256 * 1024 / 4;    // of a block of queries: in the second cache, with keys and values
constexpr std::int64_t kLeastRows = 12, kMostRows = 96;

void require(bool fine, const std::string& message) {
    if (!fine) {
        throw std::invalid_argument("attention: " + message);
    }
}

std::int64_t padded(std::int64_t count, std::int64_t to) { return (count + to - 1) / to * to; }

}  // namespace

std::int64_t attention_block(std::int64_t length) {
    return std::min(std::max(kScores / padded(length, kPanel) / kLeastRows * kLeastRows, kLeastRows), kMostRows);
}

AttentionScratch attention_scratch(const AttentionCall& call) {
    const std::int64_t length = padded(call.length, kPanel), rows = attention_block(call.length);
    AttentionScratch made{};
    made.values = length * call.channels;
    made.queries = made.values + length * padded(call.channels, kPanel);
    made.scores = made.queries + rows * padded(call.channels, kRun);
    made.weights = made.scores + rows * length;
    made.products = made.weights + rows * padded(length, kRun);
    made.factors = made.products + rows * kPanel;
    made.size = padded(made.factors + rows, 16);
    return made;
}

void attention_cpu(const AttentionCall& call, std::int64_t threads, const std::string& isa) {
    const AttentionLoop loop = EDM_LOOP(attention_, isa);
    require(threads >= 1 && threads <= 1024, "threads must be in [1, 1024], got " + std::to_string(threads));
    require(call.samples >= 0 && call.heads >= 0 && call.length >= 0, "sizes must not be negative");
    require(call.dtype != kFloat64, "q must be float32, float16 or bfloat16");
    const std::int64_t heads = call.samples * call.heads;
    if (heads * call.length == 0) {
        return;
    }
    require(call.channels > 0, "channels must be positive, got " + std::to_string(call.channels));
    require(call.q != 0 && call.k != 0 && call.v != 0 && call.out != 0, "q, k, v and out must be there");
    const std::int64_t useful = 2 * heads * call.length * call.length * call.channels / kProductsPerThread + 1;
    const std::int64_t workers = useful < threads ? useful : threads;
    // A head's keys and values are laid out anew for each part of its queries.
    const std::int64_t parts = std::min((workers + heads - 1) / heads, call.length), units = heads * parts;
    const std::int64_t size = attention_scratch(call).size;
    float* const memory = scratch_of(workers * size);        // here, because bodies must not throw
    share_out(units, workers, [&](std::int64_t unit, std::int64_t worker) {
        const std::int64_t head = unit / parts, part = unit % parts;
        loop(call, head / call.heads, head % call.heads, part * call.length / parts, (part + 1) * call.length / parts,
             memory + worker * size);
    });
}

}  // namespace edm
