// The LINEAR row of `advance`: up to three sums of coefficient times {x, D, slots}, from left to right, without the
// terms whose coefficient is 0, all of values from before the row. Included by advance.h.
#pragma once

namespace edm {

template <class T>
struct Coefficient {
    T value;
    bool used;
};

template <class T>
EDM_HD Coefficient<T> coefficient(double c) {
    return {static_cast<T>(c), c != 0};
}

// The first two terms. Both are formed and one of four results chosen, which vectorises where a branch would not.
template <class T>
EDM_HD T start(Coefficient<T> from_x, Coefficient<T> from_D, T x, T D) {
    const T x_term = from_x.value * x, D_term = from_D.value * D;
    return from_x.used ? (from_D.used ? x_term + D_term : x_term) : (from_D.used ? D_term : T(0));
}

// One more term; `begun` says whether there was one before.
template <class T>
EDM_HD T more(Coefficient<T> from_slot, bool begun, T total, T slot) {
    const T term = from_slot.value * slot;
    return from_slot.used ? (begun ? total + term : term) : total;
}

EDM_HD double x_from_slot(const Row& r, int j) {
    return j == 0 ? r.x_from_0 : j == 1 ? r.x_from_1 : j == 2 ? r.x_from_2 : r.x_from_3;
}

EDM_HD double keep_from_slot(const Row& r, int j) {
    return j == 0 ? r.keep_from_0 : j == 1 ? r.keep_from_1 : j == 2 ? r.keep_from_2 : r.keep_from_3;
}

template <class T, int W, class Io>
EDM_HD void write_slot(double j, const T (&from)[W], int n, Io& io) {
    T room[W];
    T* slot = io.slot_out(static_cast<int>(j), room);
    EDM_UNROLL for (int i = 0; i < n; ++i) slot[i] = from[i];
    io.store_slot(static_cast<int>(j), slot);
}

// What x and D give to the sums; F is read only if one of them has a term in D.
template <class P, int W, class T, class Io>
EDM_HD void linear_start(const Row& r, int n, Io& io, const T* x, T* next, T (&keep)[W], T (&store)[W]) {
    const auto next_x = coefficient<T>(r.x_from_x), next_D = coefficient<T>(r.x_from_D);
    const auto keep_x = coefficient<T>(r.keep_from_x), keep_D = coefficient<T>(r.keep_from_D);
    const auto store_x = coefficient<T>(r.store_from_x), store_D = coefficient<T>(r.store_from_D);
    const auto start_all = [&](const auto& D_of) {
        with_flag(r.keep_slot >= 0, [&](auto keeps) {
            with_flag(r.store_slot >= 0, [&](auto stores) {
                EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) {
                    const T value = x[i], D = D_of(i, value);
                    if (keeps.set) keep[i] = start(keep_x, keep_D, value, D);
                    if (stores.set) store[i] = start(store_x, store_D, value, D);
                    next[i] = start(next_x, next_D, value, D);
                }
            });
        });
    };
    if (next_D.used || (r.keep_slot >= 0 && keep_D.used) || (r.store_slot >= 0 && store_D.used)) {
        P room[W];
        float known_room[W];
        const P* F = network_output<P, W>(r, n, io, room);
        const float* known = io.known(known_room);
        const auto at = evaluation_of<P, T>(r);
        with_flags(r, io, [&](auto scaled, auto partly) {
            start_all([&](int i, T value) { return denoised(at, value, F[i], scaled, known + i, partly); });
        });
    } else {
        start_all([](int, T) { return T(0); });
    }
}

template <class P, int W, class T, class Io>
EDM_HD void linear(const Row& r, int n, Io& io, const T* x, T* next) {
    T keep[W], store[W];
    linear_start<P>(r, n, io, x, next, keep, store);
    bool next_begun = r.x_from_x != 0 || r.x_from_D != 0, keep_begun = r.keep_from_x != 0 || r.keep_from_D != 0;
    EDM_UNROLL for (int j = 0; j < kSlots; ++j) {
        const auto from = coefficient<T>(x_from_slot(r, j)), keep_from = coefficient<T>(keep_from_slot(r, j));
        if (!from.used && !(r.keep_slot >= 0 && keep_from.used)) {
            continue;
        }
        T room[W];
        const T* slot = io.slot(j, room);
        with_flag(r.keep_slot >= 0, [&](auto keeps) {
            EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) {
                if (keeps.set) keep[i] = more(keep_from, keep_begun, keep[i], slot[i]);
                next[i] = more(from, next_begun, next[i], slot[i]);
            }
        });
        next_begun = next_begun || from.used, keep_begun = keep_begun || keep_from.used;
    }
    if (r.keep_slot >= 0) {
        write_slot(r.keep_slot, keep, n, io);
    }
    if (r.store_slot >= 0) {
        write_slot(r.store_slot, store, n, io);
    }
}

}  // namespace edm
