// The loops of attention_op.h. CMake compiles this file once per instruction set, with EDM_ISA naming it. Nothing from the
// standard library is instantiated here, for the reason given in hd.h.
#include "attention_op.h"
#include "products.h"
#include "silu.h"

namespace edm {
namespace {

std::int64_t panels_of(std::int64_t count) { return (count + kPanel - 1) / kPanel; }

// A vector of a row's elements from c on, zeros behind its end.
template <class S>
Lanes part_of(const S* row, std::int64_t c, std::int64_t count) {
    return c < count ? lanes(row + c, count - c) : Lanes{};
}

// The elements that `from` names, of a and behind it b.
inline Lanes picked(const Lanes& a, const Lanes& b, const Words& from) {
#ifdef __clang__                         // which shuffles by constants only
    Lanes made;
    for (int j = 0; j < kLanes; ++j) made[j] = from[j] < kLanes ? a[from[j]] : b[from[j] - kLanes];
    return made;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Rows to columns: halves of ever larger squares change places.
inline void transpose(Lanes* rows) {
#pragma GCC unroll 4
    for (int s = 1; s < kLanes; s *= 2) {
        Words upper{}, lower{};
        for (unsigned j = 0; j < kLanes; ++j) {
            const unsigned moved = static_cast<unsigned>(s), second = kLanes + j;
            upper[j] = j & moved ? second - moved : j;
            lower[j] = j & moved ? second : j + moved;
        }
        for (int i = 0; i < kLanes; ++i) {
            if (i & s) continue;
            const Lanes a = rows[i], b = rows[i + s];
            rows[i] = picked(a, b, upper);
            rows[i + s] = picked(a, b, lower);
        }
    }
}

// k [length, channels] to [panels of keys][channels][kPanel], zeros behind the last key.
template <class S>
void lay_out_keys(const AttentionCall& call, const S* k, float* to) {
    for (std::int64_t key = 0; key < panels_of(call.length) * kPanel; key += kLanes) {
        float* panel = to + key / kPanel * call.channels * kPanel + key % kPanel;
        for (std::int64_t c = 0; c < call.channels; c += kLanes) {
            Lanes rows[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                rows[i] = key + i < call.length ? part_of(k + (key + i) * call.row_stride, c, call.channels) : Lanes{};
            }
            transpose(rows);
            const std::int64_t left = call.channels - c;
            for (std::int64_t i = 0; i < kLanes && i < left; ++i) put(panel + (c + i) * kPanel, rows[i]);
        }
    }
}

// v [length, channels] to [panels of channels][length][kPanel], zeros behind the last key and channel.
template <class S>
void lay_out_values(const AttentionCall& call, const S* v, float* to) {
    const std::int64_t length = panels_of(call.length) * kPanel, width = panels_of(call.channels) * kPanel;
    for (std::int64_t key = 0; key < length; ++key) {
        for (std::int64_t c = 0; c < width; c += kLanes) {
            const Lanes value = key < call.length ? part_of(v + key * call.row_stride, c, call.channels) : Lanes{};
            put(to + (c / kPanel * length + key) * kPanel + c % kPanel, value);
        }
    }
}

// q [rows, channels] to [runs of channels][rows][kRun].
template <class S>
void lay_out_queries(const AttentionCall& call, const S* q, std::int64_t rows, float* to) {
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t c = 0; c < call.channels; c += kLanes) {
            put(to + (c / kRun * rows + row) * kRun + c % kRun, part_of(q + row * call.row_stride, c, call.channels));
        }
    }
}

// The larger of each element, NaN where one is.
inline Lanes larger(const Lanes& a, const Lanes& b) { return a > b ? a : a != a ? a : b; }

// One query's scores, [panels][kPanel] with `step` between panels, to e^(scale (score - the largest)) as rows of runs; returns
// what makes their sum 1. Scaled last, a score is rounded once less. Of a key that is not there e^-87 is left, which changes
// no sum, for a value of zeros.
float soften(float* scores, std::int64_t step, std::int64_t length, float scale, std::int64_t rows, float* to) {
    constexpr int vectors = kPanel / kLanes;    // as many sums whatever the registers' width
    const std::int64_t panels = panels_of(length);
    for (std::int64_t key = length; key < panels * kPanel; ++key) scores[(panels - 1) * step + key % kPanel] = -__builtin_inff();
    Lanes most[vectors], sums[vectors] = {};
    for (int i = 0; i < vectors; ++i) most[i] = lanes(scores + i * kLanes);
    for (std::int64_t p = 1; p < panels; ++p) {
        for (int i = 0; i < vectors; ++i) most[i] = larger(most[i], lanes(scores + p * step + i * kLanes));
    }
    float largest = most[0][0];
    for (int i = 1; i < kPanel; ++i) {
        const float other = most[i / kLanes][i % kLanes];
        largest = largest > other || largest != largest ? largest : other;
    }
    for (std::int64_t p = 0; p < panels; ++p) {
        for (int i = 0; i < vectors; ++i) {
            const Lanes below = (lanes(scores + p * step + i * kLanes) - largest) * scale;
            const Lanes made = exp_of(below > -87.0f ? below : Lanes{} - 87.0f);
            sums[i] += made;
            put(to + p / 2 * rows * kRun + p % 2 * kPanel + i * kLanes, made);
        }
    }
    float total = 0;
    for (int i = 0; i < kPanel; ++i) total += sums[i / kLanes][i % kLanes];
    return largest - largest == 0 ? 1 / total : __builtin_nanf("");
}

template <class S>
void attend(const AttentionCall& call, std::int64_t sample, std::int64_t head, std::int64_t first, std::int64_t last,
            float* scratch) {
    const std::int64_t at = sample * call.sample_stride + head * call.head_stride, C = call.channels;
    const std::int64_t length = panels_of(call.length) * kPanel, block = attention_block(call.length);
    const AttentionScratch where = attention_scratch(call);
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(C));
    float *values = scratch + where.values, *queries = scratch + where.queries, *scores = scratch + where.scores;
    float *weights = scratch + where.weights, *products = scratch + where.products, *factors = scratch + where.factors;
    S* out = reinterpret_cast<S*>(call.out) + sample * call.out_sample_stride + head * call.out_head_stride;
    lay_out_keys(call, pointer<S>(call.k, at), scratch);
    lay_out_values(call, pointer<S>(call.v, at), values);
    for (std::int64_t query = first; query < last; query += block) {
        const std::int64_t rows = query + block < last ? block : last - query;
        lay_out_queries(call, pointer<S>(call.q, at + query * call.row_stride), rows, queries);
        for (std::int64_t p = 0; p < length / kPanel; ++p) {
            for (std::int64_t c = 0; c < C; c += kRun) {
                multiply(queries + c * rows, scratch + (p * C + c) * kPanel, c + kRun < C ? kRun : C - c, rows, c == 0,
                         scores + p * rows * kPanel);
            }
        }
        for (std::int64_t row = 0; row < rows; ++row) {
            factors[row] = soften(scores + row * kPanel, rows * kPanel, call.length, scale, rows, weights + row * kRun);
        }
        for (std::int64_t p = 0; p < panels_of(C); ++p) {
            for (std::int64_t key = 0; key < length; key += kRun) {
                multiply(weights + key * rows, values + (p * length + key) * kPanel, key + kRun < length ? kRun : length - key,
                         rows, key == 0, products);
            }
            for (std::int64_t row = 0; row < rows; ++row) {
                S* to = out + (query + row) * call.out_row_stride + p * kPanel;
                for (std::int64_t c = 0; c < kPanel && p * kPanel + c < C; c += kLanes) {
                    put(to + c, lanes(products + row * kPanel + c) * factors[row], C - p * kPanel - c);
                }
            }
        }
    }
}

}  // namespace

void EDM_JOIN(attention_, EDM_ISA)(const AttentionCall& call, std::int64_t sample, std::int64_t head, std::int64_t first,
                                   std::int64_t last, float* scratch) {
    with_type(call.dtype, [&](auto type) { attend<decltype(type)>(call, sample, head, first, last, scratch); });
}

}  // namespace edm
