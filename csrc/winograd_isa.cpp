// The loops of winograd_op.h. CMake compiles this file once per instruction set, with EDM_ISA naming it. Nothing from the
// standard library is instantiated here, for the reason given in hd.h.
#include "products.h"
#include "winograd_op.h"

namespace edm {
namespace {

inline std::int64_t run_length(std::int64_t K, std::int64_t first) { return first + kRun < K ? kRun : K - first; }

// B^T d, G w and A^T M of one dimension. Position 0 is the point 0, then come the pairs +p, -p, then infinity: a row of
// B^T holds the coefficients of the product of (x - q) over all other finite points q, one of G 1, p and p^2 over the
// value of that product at p.
template <int m>
struct Transform;

template <>
struct Transform<1> {                    // of a 1x1 convolution: one product for one output
    static void in(const Lanes* d, Lanes* out) { out[0] = d[0]; }
    static void weight(const Lanes* w, Lanes* out) { out[0] = w[0]; }
    static void out(const Lanes* m, Lanes* y) { y[0] = m[0]; }
};

template <>
struct Transform<2> {
    static void in(const Lanes* d, Lanes* out) {
        const Lanes d1 = d[1], d2 = d[2];
        out[0] = d2 - d[0];
        out[1] = d2 + d1;
        out[2] = d2 - d1;
        out[3] = d[3] - d1;
    }
    static void weight(const Lanes* w, Lanes* out) {
        const Lanes even = (w[0] + w[2]) * 0.5f, odd = w[1] * 0.5f, last = w[2];
        out[0] = -w[0];
        out[1] = even + odd;
        out[2] = even - odd;
        out[3] = last;
    }
    static void out(const Lanes* m, Lanes* y) {
        const Lanes plus = m[1], minus = m[2];
        y[0] = m[0] + (plus + minus);
        y[1] = (plus - minus) + m[3];
    }
};

template <>
struct Transform<4> {
    static constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;    // exact, all of them
    static void in(const Lanes* d, Lanes* out) {
        const Lanes d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4];
        out[0] = d4 - d2 * (a2 + b2) + d[0] * (a2 * b2);
        const Lanes even_a = d4 - d2 * b2, odd_a = (d3 - d1 * b2) * a, even_b = d4 - d2 * a2, odd_b = (d3 - d1 * a2) * b;
        out[1] = even_a + odd_a;
        out[2] = even_a - odd_a;
        out[3] = even_b + odd_b;
        out[4] = even_b - odd_b;
        out[5] = d[5] - d3 * (a2 + b2) + d1 * (a2 * b2);
    }
    static void weight(const Lanes* w, Lanes* out) {
        constexpr float at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));
        const Lanes w0 = w[0], w1 = w[1], w2 = w[2];
        const Lanes even_a = w0 * at_a + w2 * (at_a * a2), odd_a = w1 * (at_a * a);
        const Lanes even_b = w0 * at_b + w2 * (at_b * b2), odd_b = w1 * (at_b * b);
        out[0] = w0 * (1 / (a2 * b2));
        out[1] = even_a + odd_a;
        out[2] = even_a - odd_a;
        out[3] = even_b + odd_b;
        out[4] = even_b - odd_b;
        out[5] = w2;
    }
    static void out(const Lanes* m, Lanes* y) {
        const Lanes sum_a = m[1] + m[2], difference_a = m[1] - m[2];
        const Lanes sum_b = m[3] + m[4], difference_b = m[3] - m[4];
        y[0] = m[0] + (sum_a + sum_b);
        y[1] = difference_a * a + difference_b * b;
        y[2] = sum_a * a2 + sum_b * b2;
        y[3] = difference_a * (a2 * a) + difference_b * (b2 * b) + m[5];
    }
};

// A square of from by from vectors to one of to by to: the columns by the transform of one dimension, then the rows. Inlined
// by force, as g++ else makes a function of it, with the vectors in memory.
template <int from, int to, class Load, class Transformed, class Store>
__attribute__((always_inline)) inline void transform_square(const Load& load, const Transformed& transformed, const Store& store) {
    Lanes line[from], half[to * from], out[to];
    for (int j = 0; j < from; ++j) {
        for (int i = 0; i < from; ++i) line[i] = load(i * from + j);
        transformed(line, out);
        for (int i = 0; i < to; ++i) half[i * from + j] = out[i];
    }
    for (int i = 0; i < to; ++i) {
        transformed(half + i * from, out);
        for (int j = 0; j < to; ++j) store(i * to + j, out[j]);
    }
}

// Where a tile lies.
struct Place {
    std::int64_t sample, row, column;
};
template <int m>
Place place_of(const WinogradCall& call, std::int64_t tile) {
    if (m == 1) return {0, 0, tile};     // winograd_cpu makes one line of the pixels: divisions took a fifth of the time
    const std::int64_t across = call.tiles_across(), line = tile / across, down = call.tiles_down();
    return {line / down, line % down * m, tile % across * m};
}

// Tile number row of a part to its row of each position: to [runs of inputs][positions][rows][kRun].
template <int m, class S>
void transform_tile(const WinogradCall& call, const WinogradPart& part, std::int64_t row, const float* zeros, float* to) {
    constexpr int n = m == 1 ? 1 : m + 2, padding = m == 1 ? 0 : 1;
    const std::int64_t K = call.inputs, rows = part.last - part.first;
    const Place place = place_of<m>(call, part.first + row);
    const S* x = pointer<S>(call.x, place.sample * call.height * call.width * K);
    const S* from[n * n];
    for (int i = 0; i < n * n; ++i) {
        const std::int64_t line = place.row + i / n - padding, column = place.column + i % n - padding;
        const bool inside = line >= 0 && line < call.height && column >= 0 && column < call.width;
        from[i] = inside ? x + (line * call.width + column) * K : reinterpret_cast<const S*>(zeros);
    }
    for (std::int64_t first = 0; first < K; first += kRun) {
        const std::int64_t count = run_length(K, first), step = rows * kRun + kGap;
        for (std::int64_t c = 0; c < count; c += kLanes) {
            transform_square<n, n>([&](int i) { return lanes(from[i] + first + c); }, Transform<m>::in,
                                   [&](int p, const Lanes& v) { put(to + p * step + row * kRun + c, v); });
        }
        to += n * n * step;
    }
}

// G w G^T of a panel's weights of count inputs, [count, taps, kPanel], to [positions][count, kPanel], positions kWeightsStep
// apart. Weights come from memory, once an evaluation: those of a few inputs on are asked for here, as the processor's
// own guess ends with every page (8% of the CIFAR-10 network's convolutions of one image).
template <int m, class S>
__attribute__((noinline)) void transform_weights(const S* weight, std::int64_t count, float* to) {
    constexpr int n = m == 1 ? 1 : m + 2, r = m == 1 ? 1 : 3, kAhead = 8, kLine = 64 / sizeof(S);
    for (std::int64_t k = 0; k < count; ++k) {
        const S* w = weight + k * r * r * kPanel;
        for (int i = 0; i < r * r * kPanel; i += kLine) __builtin_prefetch(w + kAhead * r * r * kPanel + i);
        for (int c = 0; c < kPanel; c += kLanes) {
            transform_square<r, n>([&](int i) { return lanes(w + i * kPanel + c); }, Transform<m>::weight,
                                   [&](int p, const Lanes& v) { put(to + p * kWeightsStep + k * kPanel + c, v); });
        }
    }
}

// out = y + bias + add of a pixel's first `count` outputs of a panel.
template <class S>
void finish_pixel(const float* y, const float* bias, const S* add, std::int64_t count, S* out) {
    for (std::int64_t c = 0; c < count; c += kLanes) {
        const Lanes sum = lanes(y + c) + lanes(bias + c);
        put(out + c, add == nullptr ? sum : sum + lanes(add + c, count - c), count - c);
    }
}

// each(number in the tile, number in the batch) for the pixels of a tile that are inside.
template <int m, class Each>
__attribute__((always_inline)) inline void pixels_of(const WinogradCall& call, std::int64_t tile, const Each& each) {
    const Place place = place_of<m>(call, tile);
    for (int i = 0; i < m && place.row + i < call.height; ++i) {
        for (int j = 0; j < m && place.column + j < call.width; ++j) {
            each(i * m + j, (place.sample * call.height + place.row + i) * call.width + place.column + j);
        }
    }
}

// Asks for the memory that finish_tile reads and writes, while the tile before is computed: no processor's own guess follows
// it from pixel to pixel (4 to 9% of all on a Cascade Lake).
template <int m, class S>
void fetch_tile(const WinogradCall& call, std::int64_t tile, std::int64_t panel) {
    pixels_of<m>(call, tile, [&](int, std::int64_t pixel) {
        for (std::int64_t c = 0, at = pixel * call.outputs + panel * kPanel; c < kPanel; c += 64 / sizeof(S)) {
            if (call.add != 0) __builtin_prefetch(pointer<S>(call.add, at + c));
            __builtin_prefetch(pointer<S>(call.out, at + c), 1);
        }
    });
}

// One tile's outputs of a panel from its row of products.
template <int m, class S>
void finish_tile(const WinogradCall& call, std::int64_t tile, std::int64_t panel, const float* products, const float* bias) {
    constexpr int n = m == 1 ? 1 : m + 2;
    constexpr std::int64_t step = products_step(n * n);
    float made[m * m][kPanel];
    fetch_tile<m, S>(call, tile + 1, panel);     // of the last no harm is done
    for (int c = 0; c < kPanel; c += kLanes) {
        transform_square<n, m>([&](int p) { return lanes(products + p * step + c); }, Transform<m>::out,
                               [&](int i, const Lanes& v) { put(made[i] + c, v); });
    }
    const std::int64_t first = panel * kPanel, count = call.outputs - first < kPanel ? call.outputs - first : kPanel;
    pixels_of<m>(call, tile, [&](int i, std::int64_t pixel) {
        const std::int64_t at = pixel * call.outputs + first;
        finish_pixel(made[i], bias, call.add != 0 ? pointer<S>(call.add, at) : nullptr, count,
                     reinterpret_cast<S*>(call.out) + at);
    });
}

template <int m, class S>
void run(const WinogradCall& call, const WinogradPart& part, float* scratch) {
    constexpr std::int64_t taps = m == 1 ? 1 : 9, positions = m == 1 ? 1 : (m + 2) * (m + 2);
    const std::int64_t rows = part.last - part.first, K = call.inputs;
    const WinogradScratch at = winograd_scratch(call, rows);
    float *weights = scratch + at.weights, *products = scratch + at.products, *zeros = scratch + at.zeros, bias[kPanel];
    memset(zeros, 0, static_cast<std::size_t>(K) * sizeof(float));    // read as elements of any type
    for (std::int64_t row = 0; row < rows; ++row) transform_tile<m, S>(call, part, row, zeros, scratch);
    for (std::int64_t panel = part.first_panel; panel < part.last_panel; ++panel) {
        const float* inputs = scratch;
        for (std::int64_t first = 0; first < K; first += kRun) {
            const std::int64_t count = run_length(K, first);
            const S* weight = pointer<S>(call.weight, (panel * K + first) * taps * kPanel);
            transform_weights<m>(weight, count, weights);
            for (std::int64_t p = 0; p < positions; ++p, inputs += rows * kRun + kGap) {
                multiply(inputs, weights + p * kWeightsStep, count, rows, first == 0, products + p * products_step(positions));
            }
        }
        for (std::int64_t c = 0; c < kPanel; ++c) {
            const std::int64_t output = panel * kPanel + c;
            bias[c] = call.bias != 0 && output < call.outputs ? pointer<S>(call.bias, output)->value() : 0;
        }
        for (std::int64_t row = 0; row < rows; ++row) {
            finish_tile<m, S>(call, part.first + row, panel, products + row * kPanel, bias);
        }
    }
}

}  // namespace

void EDM_JOIN(winograd_, EDM_ISA)(const WinogradCall& call, const WinogradPart& part, float* scratch) {
    with_type(call.dtype, [&](auto type) {
        using S = decltype(type);
        (call.m == 1 ? run<1, S> : call.m == 2 ? run<2, S> : run<4, S>)(call, part, scratch);
    });
}

}  // namespace edm
