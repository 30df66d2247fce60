// The loops of group_norm_op.h. CMake compiles this file once per instruction set, with EDM_ISA naming it. Nothing
// from the standard library is instantiated here, for the reason given in hd.h.
#include "group_norm_op.h"
#include "lanes.h"
#include "silu.h"

namespace edm {
namespace {

typedef double Double __attribute__((may_alias));

constexpr int kWidth = 4;                // vectors of channels summed at once: 8 sums and 4 addends in registers
constexpr int kTile = 512;               // elements written in one loop: several pixels where there are few channels

std::int64_t chunks_of(const GroupNormCall& call) { return (call.pixels() + kChunk - 1) / kChunk; }

// total and squares of neighbouring channels over `count` lines that are `stride` elements apart: `width` vectors of them,
// a single one of which may be what is left.
template <int width, class S>
void sum_lines(const S* x, std::int64_t stride, std::int64_t count, std::int64_t left, const float* add, float* total,
               float* squares) {
    const auto read = [&](const auto* p) { return width == 1 ? lanes(p, left) : lanes(p); };
    const auto write = [&](float* p, const Lanes& v) { width == 1 ? put(p, v, left) : put(p, v); };
    Lanes plus[width] = {}, a[width] = {}, q[width] = {};
    for (int i = 0; add != nullptr && i < width; ++i) plus[i] = read(add + i * kLanes);
    for (std::int64_t p = 0; p < count; ++p) {
#pragma GCC unroll 4                     // or the sums live in memory
        for (int i = 0; i < width; ++i) {
            const Lanes value = read(x + p * stride + i * kLanes) + plus[i];
            a[i] += value;
            q[i] += value * value;
        }
    }
    for (int i = 0; i < width; ++i) write(total + i * kLanes, a[i]), write(squares + i * kLanes, q[i]);
}

// One of the tensors that lie side by side: its pixels, its channels, and the place of the first among all.
template <class S>
struct Part {
    const S* data;
    std::int64_t channels, first;
    const S* pixel(std::int64_t index) const { return data + index * channels; }
};

template <class S>
struct Parts {
    Part<S> parts[2];
    int count;
    const Part<S>* begin() const { return parts; }
    const Part<S>* end() const { return parts + count; }
};

template <class S>
Parts<S> parts_of(const GroupNormCall& call, std::int64_t b) {
    const std::int64_t own = call.channels - call.beside_channels;
    return {{{pointer<S>(call.x, b * call.pixels() * own), own, 0},
             {pointer<S>(call.beside, b * call.pixels() * call.beside_channels), call.beside_channels, own}},
            call.beside != 0 ? 2 : 1};
}

template <class S>
void sum_chunk(const GroupNormCall& call, std::int64_t b, std::int64_t chunk, float* __restrict__ to) {
    const std::int64_t first = chunk * kChunk;
    const std::int64_t count = first + kChunk < call.pixels() ? kChunk : call.pixels() - first;
    for (const Part<S>& part : parts_of<S>(call, b)) {
        const S* x = part.pixel(first);
        for (std::int64_t c = 0; c < part.channels;) {
            const std::int64_t left = part.channels - c, at = part.first + c;
            float *total = to + at, *squares = total + call.channels;
            const float* add = call.add == 0 ? nullptr : pointer<float>(call.add, b * call.add_stride + at);
            const int width = left >= kWidth * kLanes ? kWidth : 1;
            (width == 1 ? sum_lines<1, S> : sum_lines<kWidth, S>)(x + c, part.channels, count, left, add, total, squares);
            c += width * kLanes;
        }
    }
}

// Sums to lines: y = x * lines[c] + lines[C + c]. The chunks are added line by line: a group's own lie 8 C bytes apart, for
// most C in a few sets of the first cache.
template <class S>
void fold_sample(const GroupNormCall& call, const float* sums, float* lines, std::int64_t b) {
    const std::int64_t C = call.channels, per_group = C / call.groups, chunks = chunks_of(call);
    const float* of_sample = sums + b * chunks * 2 * C;
    float* to = lines + b * kLines * C;
    auto* totals = reinterpret_cast<Double*>(to + 2 * C);
    for (std::int64_t i = 0; i < 2 * C; ++i) totals[i] = static_cast<double>(of_sample[i]);
    for (std::int64_t k = 1; k < chunks; ++k) {
        for (std::int64_t i = 0; i < 2 * C; ++i) totals[i] += static_cast<double>(of_sample[k * 2 * C + i]);
    }
    for (std::int64_t g = 0; g < call.groups; ++g) {
        double total = 0, squares = 0;
        for (std::int64_t c = g * per_group; c < (g + 1) * per_group; ++c) total += totals[c], squares += totals[C + c];
        const double count = static_cast<double>(per_group) * static_cast<double>(call.pixels());
        const double mean = total / count, variance = squares / count - mean * mean;
        const double scale = 1 / __builtin_sqrt((variance > 0 ? variance : 0.0) + static_cast<double>(call.eps));
        for (std::int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
            const double weight = static_cast<double>(pointer<S>(call.weight, c)->value());
            const double bias = static_cast<double>(pointer<S>(call.bias, c)->value());
            const double add = call.add != 0 ? static_cast<double>(*pointer<float>(call.add, b * call.add_stride + c)) : 0.0;
            const std::int64_t at = b * call.scale_stride + c;
            const double gain = call.scale != 0 ? 1 + static_cast<double>(*pointer<float>(call.scale, at)) : 1.0;
            const double shift = call.shift != 0 ? static_cast<double>(*pointer<float>(call.shift, at)) : 0.0;
            const double line = scale * weight * gain;
            to[c] = static_cast<float>(line);
            to[C + c] = static_cast<float>((add - mean) * line + bias * gain + shift);
        }
    }
}

// to = function(values of from, place, how many), vector by vector. Functions hold copies: what they refer to would be read
// again for every vector.
template <class S, class T, class Function>
void map_line(const S* from, std::int64_t n, T* to, Function function) {
    std::int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(to + i, function(lanes(from + i), i, kLanes));
    if (i < n) put(to + i, function(lanes(from + i, n - i), i, n - i), n - i);
}

// to = silu(from * scale + shift), or without silu.
template <class S, class T>
void apply_line(const S* from, const float* scale, const float* shift, std::int64_t n, bool silu, T* to) {
    const auto line = [=](const Lanes& v, std::int64_t i, std::int64_t count) {
        return v * lanes(scale + i, count) + lanes(shift + i, count);
    };
    if (silu) {
        map_line(from, n, to, [=](const Lanes& v, std::int64_t i, std::int64_t count) { return silu_of(line(v, i, count)); });
    } else {
        map_line(from, n, to, line);
    }
}

// to = from * factor.
template <class S, class T>
void keep_line(const S* from, float factor, std::int64_t n, T* to) {
    map_line(from, n, to, [=](const Lanes& v, std::int64_t, std::int64_t) { return v * factor; });
}

// Pixels [begin, end) of a sample that is one part. Where a pixel has few channels, its line is laid out several times
// over, and as many pixels are written in one loop.
template <class S>
void apply_pixels(const GroupNormCall& call, const S* x, const float* scale, const float* shift, std::int64_t begin,
                  std::int64_t end, S* out) {
    const std::int64_t C = call.channels;
    float tiled_scale[kTile], tiled_shift[kTile];
    std::int64_t tile = C;
    if (2 * C <= kTile) {
        tile = kTile / C * C;
        for (std::int64_t i = 0; i < tile; ++i) tiled_scale[i] = scale[i % C], tiled_shift[i] = shift[i % C];
        scale = tiled_scale, shift = tiled_shift;
    }
    for (std::int64_t at = begin * C; at < end * C; at += tile) {
        const std::int64_t left = end * C - at;
        apply_line(x + at, scale, shift, left < tile ? left : tile, call.silu, out + at);
    }
}

// Chunks [begin, end) of one sample.
template <class S>
void apply_chunks(const GroupNormCall& call, const float* lines, std::int64_t b, std::int64_t begin, std::int64_t end) {
    const std::int64_t C = call.channels, first = begin * kChunk, pixels = call.pixels();
    const std::int64_t last = end * kChunk < pixels ? end * kChunk : pixels;
    const float *scale = lines + b * kLines * C, *shift = scale + C;
    const Parts<S> parts = parts_of<S>(call, b);
    S* out = reinterpret_cast<S*>(call.out) + b * pixels * C;
    S* keep = call.keep == 0 ? nullptr : reinterpret_cast<S*>(call.keep) + b * pixels * C;
    if (parts.count == 1) {
        apply_pixels(call, parts.parts[0].data, scale, shift, first, last, out);
        if (keep != nullptr) keep_line(parts.parts[0].pixel(first), call.keep_scale, (last - first) * C, keep + first * C);
        return;
    }
    for (std::int64_t p = first; p < last; ++p) {
        for (const Part<S>& part : parts) {
            const std::int64_t c = part.first, at = p * C + c;
            apply_line(part.pixel(p), scale + c, shift + c, part.channels, call.silu, out + at);
            if (keep != nullptr) keep_line(part.pixel(p), call.keep_scale, part.channels, keep + at);
        }
    }
}

// What a tap of the filter reads for an output at `out`, and its weight there; an index outside [0, size) is a zero.
struct Tap {
    std::int64_t from;
    float weight;
};
inline Tap tap_of(const GroupNormCall& call, std::int64_t out, int j) {
    const std::int64_t padding = call.taps / 2 - 1;
    if (call.resampling == kDown) return {2 * out + j - padding, call.filter[j]};
    const std::int64_t twice = out + padding - j;             // up: the filter's taps fall between zeros
    return {twice % 2 == 0 ? twice / 2 : -1, 2 * call.filter[j]};
}

// One row of a resampled output: rows of the input, each of them made by `line`, weighted along height and width.
template <class S, class Line>
void resample_row(const GroupNormCall& call, std::int64_t row, float* __restrict__ made, float* __restrict__ sum, S* out,
                  const Line& line) {
    const std::int64_t C = call.channels, width = call.out_width();
    for (std::int64_t i = 0; i < width * C; ++i) sum[i] = 0;
    for (int j = 0; j < call.taps; ++j) {
        const Tap down = tap_of(call, row, j);
        if (down.from < 0 || down.from >= call.height) continue;
        for (std::int64_t w = 0; w < call.width; ++w) line(down.from * call.width + w, made + w * C);
        for (std::int64_t w = 0; w < width; ++w) {
            for (int k = 0; k < call.taps; ++k) {
                const Tap across = tap_of(call, w, k);
                if (across.from < 0 || across.from >= call.width) continue;
                const float weight = down.weight * across.weight;
                const float* from = made + across.from * C;
                float* to = sum + w * C;
                for (std::int64_t c = 0; c < C; ++c) to[c] += weight * from[c];
            }
        }
    }
    map_line(sum, width * C, out, [](const Lanes& v, std::int64_t, std::int64_t) { return v; });
}

template <class S>
void resample_rows(const GroupNormCall& call, float* scratch, const float* lines, std::int64_t b, std::int64_t row) {
    const std::int64_t C = call.channels, at = (b * call.out_height() + row) * call.out_width() * C;
    const Parts<S> parts = parts_of<S>(call, b);
    const float *scale = lines + b * kLines * C, *shift = scale + C;
    float* sum = scratch + call.width * C;
    resample_row(call, row, scratch, sum, reinterpret_cast<S*>(call.out) + at, [&](std::int64_t pixel, float* to) {
        for (const Part<S>& part : parts) {
            const std::int64_t c = part.first;
            apply_line(part.pixel(pixel), scale + c, shift + c, part.channels, call.silu,
                       reinterpret_cast<Float32*>(to + c));
        }
    });
    if (call.keep == 0) return;
    resample_row(call, row, scratch, sum, reinterpret_cast<S*>(call.keep) + at, [&](std::int64_t pixel, float* to) {
        for (const Part<S>& part : parts) {
            keep_line(part.pixel(pixel), call.keep_scale, part.channels, reinterpret_cast<Float32*>(to + part.first));
        }
    });
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

void resample(const GroupNormCall& call, float* scratch, float* lines, std::int64_t begin, std::int64_t end) {
    const std::int64_t rows = call.out_height();
    with_type(call.dtype, [&](auto type) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            resample_rows<decltype(type)>(call, scratch, lines, unit / rows, unit % rows);
        }
    });
}

}  // namespace

GroupNormLoops EDM_JOIN(group_norm_loops_, EDM_ISA)() { return {sum, fold, apply, resample}; }

}  // namespace edm
