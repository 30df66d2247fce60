// `advance`: from the network's output F to the next network input, one table row per sample.
//
// The contract is engine/plan.py (Row: columns and arithmetic) and engine/reference.py: the same
// IEEE-754 operations per element, in the same order. This header is that arithmetic for both the
// CPU and CUDA. It works on a run of up to W elements held in arrays: a few hundred on the stack of
// a CPU thread, four in the registers of a GPU thread. What depends on the row alone is decided once
// a run, outside the loops. `Io` holds the call and knows where the elements lie:
//
//     x(room)   slot(j, room)   F(room)   G(room)   known(room)
//                                          where the elements are to be read: in memory, or loaded into `room`
//     x_out(room)  slot_out(j, room)  net_out(room)    where to form new ones: in memory, or in `room`,
//     store_x(x)   store_slot(j, slot)   store_net(v)  which these then take there
//     latents(z)   eps(draw, z)   guide_scale()        noise; the sample's scale
//
// A CPU thread works on x and the slots in place; a GPU thread must have them in registers.
#pragma once

#include "advance_call.h"
#include "guide.h"

namespace edm {

// In the order of engine.plan.COLUMNS; engine/backends/native.py refuses to run where they differ.
#define EDM_ROW_COLUMNS(X)                                                                         \
    X(op) X(sigma) X(c_skip) X(c_out) X(guide_F) X(guide_G) X(rescale) X(s) X(begin_scale)         \
    X(slope_x) X(slope_D) X(slope_t) X(h) X(h_predict) X(w_0) X(w_1) X(x_from_x) X(x_from_D)       \
    X(x_from_0) X(x_from_1) X(x_from_2) X(x_from_3) X(keep_slot) X(keep_from_x) X(keep_from_D)     \
    X(keep_from_0) X(keep_from_1) X(keep_from_2) X(keep_from_3) X(store_slot) X(store_from_x)      \
    X(store_from_D) X(ratio) X(std) X(draw) X(evaluate) X(s_next) X(c_in) X(c_noise)

struct Row {
#define EDM_FIELD(name) double name;
    EDM_ROW_COLUMNS(EDM_FIELD)
#undef EDM_FIELD
};

constexpr int kColumns = sizeof(Row) / sizeof(double);
constexpr int kSlots = 4;  // the x_from_0 ... x_from_3 of a row

enum Op : int { kBegin, kEuler, kPredict, kCorrect, kLinear };

enum Problem : int { kFine, kUnknownOp, kNeedsF, kNeedsG, kNeedsScale, kNeedsSeeds, kNeedsDraw, kNeedsSlot };

// One more than the highest slot a row reads or writes.
EDM_HD int slots_used(const Row& row) {
    if (row.op != kLinear) {
        return row.op == kPredict || row.op == kCorrect ? 1 : 0;
    }
    const bool read[kSlots] = {row.x_from_0 != 0 || row.keep_from_0 != 0, row.x_from_1 != 0 || row.keep_from_1 != 0,
                               row.x_from_2 != 0 || row.keep_from_2 != 0, row.x_from_3 != 0 || row.keep_from_3 != 0};
    int used = 0;
    EDM_UNROLL for (int j = 0; j < kSlots; ++j) {
        used = read[j] || row.keep_slot >= j || row.store_slot >= j ? j + 1 : used;
    }
    return row.keep_slot >= kSlots || row.store_slot >= kSlots ? kSlots + 1 : used;
}

// Whether the call has what the row asks for: the CPU backend raises, the CUDA kernel reports the sample as bad.
EDM_HD Problem problem_of(const Row& row, const AdvanceCall& call) {
    const bool linear = row.op == kLinear, noisy = row.op != kPredict && row.std != 0;
    if (!(row.op == kBegin || row.op == kEuler || row.op == kPredict || row.op == kCorrect || linear)) {
        return kUnknownOp;
    }
    if (row.op != kBegin && call.F.address == 0) {
        return kNeedsF;
    }
    if (row.op != kBegin && row.guide_G != 0 && call.G.address == 0) {
        return kNeedsG;
    }
    if (row.op != kBegin && row.rescale != 0 && call.guide_scale == 0) {
        return kNeedsScale;
    }
    if (call.seeds == 0 && ((row.op == kBegin && call.latents.address == 0) || (noisy && call.eps.address == 0))) {
        return kNeedsSeeds;
    }
    if (noisy && !(row.draw >= 0 && (call.eps.address == 0 || row.draw < static_cast<double>(call.draws)))) {
        return kNeedsDraw;
    }
    if (slots_used(row) > call.slot_count) {
        return kNeedsSlot;
    }
    return kFine;
}

// Calls body with a flag as a type, so that its loop is compiled for either and vectorises.
template <bool value>
struct Flag {
    static constexpr bool set = value;
};

template <class Body>
EDM_HD void with_flag(bool flag, const Body& body) {
    if (flag) {
        body(Flag<true>{});
    } else {
        body(Flag<false>{});
    }
}

// Dividing by one is exact, and many divisors are ones (all s of the paper's own schedule): save the division.
template <class T, bool needed>
EDM_HD T divide(T x, T divisor, Flag<needed>) {
    return needed ? x / divisor : x;
}

// A row's numbers in the types they are used in. Copies, because a loop that writes to memory would read the row itself
// again for every element.
template <class P, class T>
struct Evaluation {
    P c_skip, c_out;
    T s, slope_x, slope_D, slope_t;
};

template <class P, class T>
EDM_HD Evaluation<P, T> evaluation_of(const Row& row) {
    return {static_cast<P>(row.c_skip),  static_cast<P>(row.c_out),   static_cast<T>(row.s),
            static_cast<T>(row.slope_x), static_cast<T>(row.slope_D), static_cast<T>(row.slope_t)};
}

// D = c_skip * P(x_eval / s) + c_out * F, P being float32 unless the network is float64; or what is known of it
template <class P, class T, bool scaled, bool partly>
EDM_HD T denoised(const Evaluation<P, T>& at, T x_eval, P F, Flag<scaled> flag, const float* known, Flag<partly>) {
    const T D = static_cast<T>(at.c_skip * static_cast<P>(divide(x_eval, at.s, flag)) + at.c_out * F);
    return partly && *known == *known ? static_cast<T>(*known) : D;
}

// Calls body with both flags of `denoised`.
template <class Io, class Body>
EDM_HD void with_flags(const Row& row, const Io& io, const Body& body) {
    with_flag(row.s != 1, [&](auto scaled) {
        with_flag(io.call.known != 0, [&](auto partly) { body(scaled, partly); });
    });
}

// slope = (slope_x * x_eval - slope_D * D) / slope_t
template <class P, class T, bool divided>
EDM_HD T slope_of(const Evaluation<P, T>& at, T x_eval, T D, Flag<divided> flag) {
    return divide(at.slope_x * x_eval - at.slope_D * D, at.slope_t, flag);
}

// next = x + h * slope; PREDICT keeps the slope in slot 0
template <class P, int W, class T, class Io>
EDM_HD void euler(const Row& row, int n, Io& io, const T* x, T* next) {
    const auto at = evaluation_of<P, T>(row);
    const auto h = static_cast<T>(row.h);
    const bool keep = row.op == kPredict;
    P F_room[W];
    T slope_room[W];
    float known_room[W];
    const P* F = network_output<P, W>(row, n, io, F_room);
    const float* known = io.known(known_room);
    T* slope = keep ? io.slot_out(0, slope_room) : slope_room;
    with_flags(row, io, [&](auto scaled, auto partly) {
        with_flag(row.slope_t != 1, [&](auto divided) {
            EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) {
                slope[i] = slope_of(at, x[i], denoised(at, x[i], F[i], scaled, known + i, partly), divided);
                next[i] = x[i] + h * slope[i];
            }
        });
    });
    if (keep) {
        io.store_slot(0, slope);
    }
}

// next = x + h * (w_0 * slot 0 + w_1 * slope), slope taken at x + h_predict * slot 0
template <class P, int W, class T, class Io>
EDM_HD void correct(const Row& row, int n, Io& io, const T* x, T* next) {
    const auto at = evaluation_of<P, T>(row);
    const auto h = static_cast<T>(row.h), h_predict = static_cast<T>(row.h_predict);
    const auto w_0 = static_cast<T>(row.w_0), w_1 = static_cast<T>(row.w_1);
    P F_room[W];
    T slot_room[W];
    float known_room[W];
    const P* F = network_output<P, W>(row, n, io, F_room);
    const float* known = io.known(known_room);
    const T* first = io.slot(0, slot_room);
    with_flags(row, io, [&](auto scaled, auto partly) {
        with_flag(row.slope_t != 1, [&](auto divided) {
            EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) {
                const T x_eval = x[i] + h_predict * first[i];
                const T D = denoised(at, x_eval, F[i], scaled, known + i, partly);
                const T slope = slope_of(at, x_eval, D, divided);
                next[i] = x[i] + h * (w_0 * first[i] + w_1 * slope);
            }
        });
    });
}

}  // namespace edm

#include "advance_linear.h"

namespace edm {

template <class P, int W, class T, class Io>
EDM_HD void evaluate(const Row& row, int n, Io& io, const T* x, T* next) {
    if (row.op == kLinear) {
        linear<P, W>(row, n, io, x, next);
    } else if (row.op == kCorrect) {
        correct<P, W>(row, n, io, x, next);
    } else {
        euler<P, W>(row, n, io, x, next);
    }
}

// x = ratio * x + std * eps; noise of standard deviation 0 is neither drawn nor added
template <int W, class T, class Io>
EDM_HD void churn(const Row& row, int n, Io& io, T* x) {
    const auto ratio = static_cast<T>(row.ratio), std = static_cast<T>(row.std);
    if (row.std != 0) {
        T eps[W];
        io.eps(static_cast<std::int64_t>(row.draw), eps);
        EDM_UNROLL for (int i = 0; i < n; ++i) x[i] = ratio * x[i] + std * eps[i];
    } else if (row.ratio != 1) {
        EDM_UNROLL for (int i = 0; i < n; ++i) x[i] = ratio * x[i];
    }
}

// net_in = c_in * P(x / s_next), P as above; then rounded to the network's dtype
template <class P, int W, class T, class Io>
EDM_HD void network_input(const Row& row, int n, Io& io, const T* x) {
    const auto c_in = static_cast<P>(row.c_in);
    const auto s_next = static_cast<T>(row.s_next);
    P room[W];
    P* v = io.net_out(room);
    with_flag(row.s_next != 1, [&](auto scaled) {
        EDM_UNROLL for (int i = 0; i < n; ++i) v[i] = c_in * static_cast<P>(divide(x[i], s_next, scaled));
    });
    io.store_net(v);
}

// Negative if and only if x is infinite or NaN: its exponent is all ones, and one more carries into the sign.
EDM_HD std::int64_t exponent_carry(double x) {
    std::int64_t i;
    memcpy(&i, &x, sizeof i);
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(i & 0x7fffffffffffffff) + 0x0010000000000000u);
}

EDM_HD std::int32_t exponent_carry(float x) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(bits_of(x) & 0x7fffffff) + 0x00800000u);
}

// Whether a lane of [low, high) is not finite. Integers only, so that it vectorises everywhere.
template <class T>
EDM_HD bool any_not_finite(const T* x, int n, int low, int high) {
    decltype(exponent_carry(T(0))) carries = 0;
    EDM_UNROLL for (int i = 0; i < n; ++i) carries |= i >= low && i < high ? exponent_carry(x[i]) : 0;
    return carries < 0;
}

// Advances `n` lanes by a row without `problem_of`; says whether a lane of [low, high) ends non-finite.
template <class T, int W, class Io>
EDM_HD bool advance_run(const Row& row, int n, int low, int high, Io& io) {
    T room[W];
    T* next = row.op == kPredict ? room : io.x_out(room);
    if (row.op == kBegin) {
        const auto begin_scale = static_cast<T>(row.begin_scale);
        T z[W];
        io.latents(z);
        EDM_UNROLL for (int i = 0; i < n; ++i) next[i] = z[i] * begin_scale;
    } else {
        T x_room[W];
        const T* x = io.x(x_room);
        if (io.call.F.dtype == kFloat64) {
            evaluate<double, W>(row, n, io, x, next);
        } else {
            evaluate<float, W>(row, n, io, x, next);
        }
    }
    if (row.op != kPredict) {
        churn<W>(row, n, io, next);
        io.store_x(next);
    }
    if (row.evaluate != 0 && io.call.net_in.dtype == kFloat64) {
        network_input<double, W>(row, n, io, next);
    } else if (row.evaluate != 0) {
        network_input<float, W>(row, n, io, next);
    }
    return any_not_finite(next, n, low, high);
}

}  // namespace edm
