// `advance`: from the network's output F to the next network input, one table row per sample.
//
// The contract is engine/plan.py (Row: columns and arithmetic) and engine/reference.py: the same
// IEEE-754 operations per element, in the same order. This header is that arithmetic for both the
// CPU and CUDA. It works on a run of up to W elements held in arrays: a few hundred on the stack of
// a CPU thread, four in the registers of a GPU thread. What depends on the row alone is decided once
// a run, outside the loops. `Io` holds the call and knows where the elements lie:
//
//     load_x(x)  load_slot(j, slot)  load_F(F)  latents(z)  eps(draw, z)    memory to arrays
//     store_x(x) store_slot(j, slot) store_net(v)                           arrays to memory
#pragma once

#include "advance_call.h"

namespace edm {

// In the order of engine.plan.COLUMNS; engine/backends/native.py refuses to run where they differ.
#define EDM_ROW_COLUMNS(X)                                                                          \
    X(op) X(sigma) X(c_skip) X(c_out) X(s) X(begin_scale) X(slope_x) X(slope_D) X(slope_t) X(h)      \
    X(h_predict) X(w_0) X(w_1) X(x_from_x) X(x_from_D) X(x_from_0) X(x_from_1) X(x_from_2)           \
    X(x_from_3) X(keep_slot) X(keep_from_x) X(keep_from_D) X(keep_from_0) X(keep_from_1)             \
    X(keep_from_2) X(keep_from_3) X(store_slot) X(store_from_x) X(store_from_D) X(ratio) X(std)      \
    X(draw) X(evaluate) X(s_next) X(c_in) X(c_noise)

struct Row {
#define EDM_FIELD(name) double name;
    EDM_ROW_COLUMNS(EDM_FIELD)
#undef EDM_FIELD
};

constexpr int kColumns = sizeof(Row) / sizeof(double);
constexpr int kSlots = 4;  // the x_from_0 ... x_from_3 of a row

enum Op : int { kBegin, kEuler, kPredict, kCorrect, kLinear };

enum Problem : int { kFine, kUnknownOp, kNeedsF, kNeedsSeeds, kNeedsDraw, kNeedsSlot };

// Whether the call has what the row asks for: the CPU backend raises, the CUDA kernel reports the sample as bad.
EDM_HD Problem problem_of(const Row& row, const AdvanceCall& call) {
    const auto slots = static_cast<double>(call.slot_count);
    const bool linear = row.op == kLinear, noisy = row.op != kPredict && row.std != 0;
    if (!(row.op == kBegin || row.op == kEuler || row.op == kPredict || row.op == kCorrect || linear)) {
        return kUnknownOp;
    }
    if (row.op != kBegin && call.F.address == 0) {
        return kNeedsF;
    }
    if (call.seeds == 0 && ((row.op == kBegin && call.latents.address == 0) || (noisy && call.eps.address == 0))) {
        return kNeedsSeeds;
    }
    if (noisy && !(row.draw >= 0 && (call.eps.address == 0 || row.draw < static_cast<double>(call.draws)))) {
        return kNeedsDraw;
    }
    if (((row.op == kPredict || row.op == kCorrect) && slots < 1) ||
        (linear && !(row.keep_slot < slots && row.store_slot < slots))) {
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

// D = c_skip * P(x_eval / s) + c_out * F, P being float32 unless the network is float64
template <class P, class T, bool scaled>
EDM_HD T denoised(const Row& row, T x_eval, P F, Flag<scaled> flag) {
    const P x = static_cast<P>(divide(x_eval, static_cast<T>(row.s), flag));
    return static_cast<T>(static_cast<P>(row.c_skip) * x + static_cast<P>(row.c_out) * F);
}

// slope = (slope_x * x_eval - slope_D * D) / slope_t
template <class T, bool divided>
EDM_HD T slope_of(const Row& row, T x_eval, T D, Flag<divided> flag) {
    const T difference = static_cast<T>(row.slope_x) * x_eval - static_cast<T>(row.slope_D) * D;
    return divide(difference, static_cast<T>(row.slope_t), flag);
}

// x = x + h * slope; PREDICT keeps the slope in slot 0
template <class P, class T, int W, class Io>
EDM_HD void euler(const Row& row, int n, Io& io, T (&x)[W]) {
    const auto h = static_cast<T>(row.h);
    P F[W];
    T slope[W];
    io.load_F(F);
    with_flag(row.s != 1, [&](auto scaled) {
        with_flag(row.slope_t != 1, [&](auto divided) {
            EDM_UNROLL for (int i = 0; i < n; ++i) {
                slope[i] = slope_of(row, x[i], denoised(row, x[i], F[i], scaled), divided);
                x[i] = x[i] + h * slope[i];
            }
        });
    });
    if (row.op == kPredict) {
        io.store_slot(0, slope);
    }
}

// x = x + h * (w_0 * slot 0 + w_1 * slope), slope taken at x + h_predict * slot 0
template <class P, class T, int W, class Io>
EDM_HD void correct(const Row& row, int n, Io& io, T (&x)[W]) {
    const auto h = static_cast<T>(row.h), h_predict = static_cast<T>(row.h_predict);
    const auto w_0 = static_cast<T>(row.w_0), w_1 = static_cast<T>(row.w_1);
    P F[W];
    T first[W];
    io.load_F(F);
    io.load_slot(0, first);
    with_flag(row.s != 1, [&](auto scaled) {
        with_flag(row.slope_t != 1, [&](auto divided) {
            EDM_UNROLL for (int i = 0; i < n; ++i) {
                const T x_eval = x[i] + h_predict * first[i];
                const T slope = slope_of(row, x_eval, denoised(row, x_eval, F[i], scaled), divided);
                x[i] = x[i] + h * (w_0 * first[i] + w_1 * slope);
            }
        });
    });
}

// A sum of coefficient times {x, D, slots}, left to right, without the terms whose coefficient is 0.
// Not `wanted`: it goes nowhere, so it is not formed.
template <class T, int W>
struct Sum {
    double from[2 + kSlots];
    bool wanted, begun;
    T total[W];
};

template <class T, int W>
EDM_HD void add(Sum<T, W>& sum, int t, const T (&term)[W], int n) {
    const auto c = static_cast<T>(sum.from[t]);
    if (!sum.wanted || sum.from[t] == 0) {
        return;
    }
    if (sum.begun) {
        EDM_UNROLL for (int i = 0; i < n; ++i) sum.total[i] = sum.total[i] + c * term[i];
    } else {
        EDM_UNROLL for (int i = 0; i < n; ++i) sum.total[i] = c * term[i];
    }
    sum.begun = true;
}

template <class T, int W>
EDM_HD void finish(Sum<T, W>& sum, int n) {
    if (!sum.begun) {
        EDM_UNROLL for (int i = 0; i < n; ++i) sum.total[i] = 0;
    }
}

template <class P, class T, int W, class Io>
EDM_HD void linear(const Row& r, int n, Io& io, T (&x)[W]) {
    Sum<T, W> next{{r.x_from_x, r.x_from_D, r.x_from_0, r.x_from_1, r.x_from_2, r.x_from_3}, true, false, {}};
    Sum<T, W> keep{{r.keep_from_x, r.keep_from_D, r.keep_from_0, r.keep_from_1, r.keep_from_2, r.keep_from_3},
                   r.keep_slot >= 0, false, {}};
    Sum<T, W> store{{r.store_from_x, r.store_from_D, 0, 0, 0, 0}, r.store_slot >= 0, false, {}};
    add(next, 0, x, n), add(keep, 0, x, n), add(store, 0, x, n);
    if (next.from[1] != 0 || keep.from[1] != 0 || store.from[1] != 0) {
        P F[W];
        io.load_F(F);
        with_flag(r.s != 1, [&](auto scaled) {
            EDM_UNROLL for (int i = 0; i < n; ++i) x[i] = denoised(r, x[i], F[i], scaled);
        });
        add(next, 1, x, n), add(keep, 1, x, n), add(store, 1, x, n);
    }
    EDM_UNROLL for (int j = 0; j < kSlots; ++j) {
        if (j < io.call.slot_count && (next.from[2 + j] != 0 || (keep.wanted && keep.from[2 + j] != 0))) {
            io.load_slot(j, x);
            add(next, 2 + j, x, n), add(keep, 2 + j, x, n);
        }
    }
    finish(next, n), finish(keep, n), finish(store, n);
    if (keep.wanted) {
        io.store_slot(static_cast<int>(r.keep_slot), keep.total);
    }
    if (store.wanted) {
        io.store_slot(static_cast<int>(r.store_slot), store.total);
    }
    EDM_UNROLL for (int i = 0; i < n; ++i) x[i] = next.total[i];
}

template <class P, class T, int W, class Io>
EDM_HD void evaluate(const Row& row, int n, Io& io, T (&x)[W]) {
    if (row.op == kLinear) {
        linear<P>(row, n, io, x);
    } else if (row.op == kCorrect) {
        correct<P>(row, n, io, x);
    } else {
        euler<P>(row, n, io, x);
    }
}

// x = ratio * x + std * eps; noise of standard deviation 0 is neither drawn nor added
template <class T, int W, class Io>
EDM_HD void churn(const Row& row, int n, Io& io, T (&x)[W]) {
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
template <class P, class T, int W, class Io>
EDM_HD void network_input(const Row& row, int n, Io& io, const T (&x)[W]) {
    const auto c_in = static_cast<P>(row.c_in);
    const auto s_next = static_cast<T>(row.s_next);
    P v[W];
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
template <class T, int W>
EDM_HD bool any_not_finite(const T (&x)[W], int n, int low, int high) {
    decltype(exponent_carry(T(0))) carries = 0;
    EDM_UNROLL for (int i = 0; i < n; ++i) carries |= i >= low && i < high ? exponent_carry(x[i]) : 0;
    return carries < 0;
}

// Advances `n` lanes by a row without `problem_of`; says whether a lane of [low, high) ends non-finite.
template <class T, int W, class Io>
EDM_HD bool advance_run(const Row& row, int n, int low, int high, Io& io) {
    T x[W];
    if (row.op == kBegin) {
        const auto begin_scale = static_cast<T>(row.begin_scale);
        io.latents(x);
        EDM_UNROLL for (int i = 0; i < n; ++i) x[i] = x[i] * begin_scale;
    } else {
        io.load_x(x);
        if (io.call.F.dtype == kFloat64) {
            evaluate<double>(row, n, io, x);
        } else {
            evaluate<float>(row, n, io, x);
        }
    }
    if (row.op != kPredict) {
        churn(row, n, io, x);
        io.store_x(x);
    }
    if (row.evaluate != 0 && io.call.net_in.dtype == kFloat64) {
        network_input<double>(row, n, io, x);
    } else if (row.evaluate != 0) {
        network_input<float>(row, n, io, x);
    }
    return any_not_finite(x, n, low, high);
}

}  // namespace edm
