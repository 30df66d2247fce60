// The loops of group_norm_op.h. CMake compiles this file once per instruction set, with EDM_ISA naming it. Nothing
// from the standard library is instantiated here, for the reason given in hd.h.
#include "group_norm_op.h"
#include "half.h"

#define EDM_JOIN_(a, b) a##b
#define EDM_JOIN(a, b) EDM_JOIN_(a, b)

namespace edm {
namespace {

constexpr int kWidth = 32;               // channels summed at once, in registers
constexpr int kTile = 512;               // elements written in one loop: several pixels where there are few channels

std::int64_t chunks_of(const GroupNormCall& call) { return (call.pixels + kChunk - 1) / kChunk; }

struct Float16 {
    std::uint16_t bits;
    float value() const { return f16_to_float(bits); }
    static Float16 of(float x) { return {float_to_f16(x)}; }
};
struct BFloat16 {
    std::uint16_t bits;
    float value() const { return bf16_to_float(bits); }
    static BFloat16 of(float x) { return {float_to_bf16(x)}; }
};
struct Float32 {
    float bits;
    float value() const { return bits; }
    static Float32 of(float x) { return {x}; }
};

template <class S>
const S* pointer(std::uintptr_t address, std::int64_t offset) {
    return reinterpret_cast<const S*>(address) + offset;
}

// e^z for |z| up to 87, within 2 ulp: 2^n times a polynomial of degree 6 in the rest, |rest| <= ln 2 / 2.
inline float exp_of(float z) {
    constexpr float kMagic = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer
    const float n = (z * 1.44269504f + kMagic) - kMagic;
    const float r = (z - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((static_cast<std::int32_t>(n) + 127) << 23);
}

// y / (1 + e^-y). Comparisons that a NaN fails leave the clamp's bound, and the NaN in the numerator.
inline float silu_of(float y) {
    const float below = -y < 87.0f ? -y : 87.0f;
    return y / (1.0f + exp_of(below > -87.0f ? below : -87.0f));
}

// total and squares of `width` neighbouring channels over `count` lines that are `stride` elements apart.
template <int width, class S>
void sum_lines(const S* x, std::int64_t stride, std::int64_t count, const float* plus, float* __restrict__ total,
               float* __restrict__ squares) {
    float a[width] = {}, q[width] = {};
    for (std::int64_t p = 0; p < count; ++p) {
        const S* line = x + p * stride;
        for (int i = 0; i < width; ++i) {
            const float value = line[i].value() + plus[i];
            a[i] += value;
            q[i] += value * value;
        }
    }
    for (int i = 0; i < width; ++i) total[i] = a[i], squares[i] = q[i];
}

template <class S>
void sum_chunk(const GroupNormCall& call, std::int64_t b, std::int64_t chunk, float* __restrict__ to) {
    const std::int64_t C = call.channels, first = chunk * kChunk;
    const std::int64_t count = first + kChunk < call.pixels ? kChunk : call.pixels - first;
    const S* x = pointer<S>(call.x, (b * call.pixels + first) * C);
    for (std::int64_t c = 0; c < C;) {
        float plus[kWidth] = {};
        const int width = C - c < kWidth ? 1 : kWidth;
        for (int i = 0; call.add != 0 && i < width; ++i) plus[i] = *pointer<float>(call.add, b * C + c + i);
        if (width == kWidth) {
            sum_lines<kWidth>(x + c, C, count, plus, to + c, to + C + c);
        } else {
            sum_lines<1>(x + c, C, count, plus, to + c, to + C + c);
        }
        c += width;
    }
}

// Sums to lines: y = x * lines[c] + lines[C + c].
template <class S>
void fold_sample(const GroupNormCall& call, const float* sums, float* lines, std::int64_t b) {
    const std::int64_t C = call.channels, per_group = C / call.groups, chunks = chunks_of(call);
    const float* of_sample = sums + b * chunks * 2 * C;
    float* to = lines + b * 2 * C;
    for (std::int64_t g = 0; g < call.groups; ++g) {
        double total = 0, squares = 0;
        for (std::int64_t k = 0; k < chunks; ++k) {
            for (std::int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
                total += static_cast<double>(of_sample[k * 2 * C + c]);
                squares += static_cast<double>(of_sample[k * 2 * C + C + c]);
            }
        }
        const double count = static_cast<double>(per_group) * static_cast<double>(call.pixels);
        const double mean = total / count, variance = squares / count - mean * mean;
        const double scale = 1 / __builtin_sqrt((variance > 0 ? variance : 0.0) + static_cast<double>(call.eps));
        for (std::int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
            const double weight = static_cast<double>(pointer<S>(call.weight, c)->value());
            const double bias = static_cast<double>(pointer<S>(call.bias, c)->value());
            const double add = call.add != 0 ? static_cast<double>(*pointer<float>(call.add, b * C + c)) : 0.0;
            const double gain = call.scale != 0 ? 1 + static_cast<double>(*pointer<float>(call.scale, b * C + c)) : 1.0;
            const double shift = call.shift != 0 ? static_cast<double>(*pointer<float>(call.shift, b * C + c)) : 0.0;
            const double line = scale * weight * gain;
            to[c] = static_cast<float>(line);
            to[C + c] = static_cast<float>((add - mean) * line + bias * gain + shift);
        }
    }
}

template <class S>
void apply_line(const S* __restrict__ from, const float* __restrict__ scale, const float* __restrict__ shift, int n,
                bool silu, S* __restrict__ to) {
    if (silu) {
        for (int i = 0; i < n; ++i) to[i] = S::of(silu_of(from[i].value() * scale[i] + shift[i]));
    } else {
        for (int i = 0; i < n; ++i) to[i] = S::of(from[i].value() * scale[i] + shift[i]);
    }
}

// Chunks [begin, end) of one sample. Where a pixel has few channels, its line is laid out several times over, and as
// many pixels are written in one loop.
template <class S>
void apply_chunks(const GroupNormCall& call, const float* lines, std::int64_t b, std::int64_t begin, std::int64_t end) {
    const std::int64_t C = call.channels, first = begin * kChunk * C;
    const std::int64_t pixels = end * kChunk < call.pixels ? end * kChunk : call.pixels;
    const float *scale = lines + b * 2 * C, *shift = scale + C;
    const S* x = pointer<S>(call.x, b * call.pixels * C);
    S* out = reinterpret_cast<S*>(call.out) + b * call.pixels * C;
    float tiled_scale[kTile], tiled_shift[kTile];
    std::int64_t tile = C;
    if (2 * C <= kTile) {
        tile = kTile / C * C;
        for (std::int64_t i = 0; i < tile; ++i) tiled_scale[i] = scale[i % C], tiled_shift[i] = shift[i % C];
        scale = tiled_scale, shift = tiled_shift;
    }
    for (std::int64_t at = first; at < pixels * C; at += tile) {
        const std::int64_t left = pixels * C - at;
        apply_line(x + at, scale, shift, static_cast<int>(left < tile ? left : tile), call.silu, out + at);
    }
}

// Calls body with the element type as an argument.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
    if (dtype == kFloat16) {
        body(Float16{});
    } else if (dtype == kBFloat16) {
        body(BFloat16{});
    } else {
        body(Float32{});
    }
}

void sum(const GroupNormCall& call, float* sums, float*, std::int64_t begin, std::int64_t end) {
    const std::int64_t chunks = chunks_of(call);
    with_type(call.dtype, [&](auto type) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            sum_chunk<decltype(type)>(call, unit / chunks, unit % chunks, sums + unit * 2 * call.channels);
        }
    });
}

void fold(const GroupNormCall& call, float* sums, float* lines, std::int64_t begin, std::int64_t end) {
    with_type(call.dtype, [&](auto type) {
        for (std::int64_t b = begin; b < end; ++b) fold_sample<decltype(type)>(call, sums, lines, b);
    });
}

void apply(const GroupNormCall& call, float*, float* lines, std::int64_t begin, std::int64_t end) {
    const std::int64_t chunks = chunks_of(call);
    with_type(call.dtype, [&](auto type) {
        for (std::int64_t unit = begin; unit < end;) {       // as many of a sample's chunks as there are
            const std::int64_t b = unit / chunks, last = (b + 1) * chunks < end ? (b + 1) * chunks : end;
            apply_chunks<decltype(type)>(call, lines, b, unit - b * chunks, last - b * chunks);
            unit = last;
        }
    });
}

}  // namespace

GroupNormLoops EDM_JOIN(group_norm_loops_, EDM_ISA)() { return {sum, fold, apply}; }

}  // namespace edm
