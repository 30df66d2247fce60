// The LINEAR row of `advance`: up to three sums of coefficient times {x, D, slots}, from left to right, without the
// terms whose coefficient is 0, all of values from before the row. Included by advance.h.
//
// One loop over x, D and the slots the row reads, however many, forms x and the slot that is stored: on a CPU every
// further pass over a run costs what the sums themselves do.
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

EDM_HD double x_from_slot(const Row& r, int j) {
    return j == 0 ? r.x_from_0 : j == 1 ? r.x_from_1 : j == 2 ? r.x_from_2 : r.x_from_3;
}

EDM_HD double keep_from_slot(const Row& r, int j) {
    return j == 0 ? r.keep_from_0 : j == 1 ? r.keep_from_1 : j == 2 ? r.keep_from_2 : r.keep_from_3;
}

// The slots a row reads, as bits.
EDM_HD unsigned slots_read(const Row& r) {
    unsigned read = 0;
    EDM_UNROLL for (int j = 0; j < kSlots; ++j) {
        const bool needed = x_from_slot(r, j) != 0 || (r.keep_slot >= 0 && keep_from_slot(r, j) != 0);
        read |= needed ? 1u << j : 0u;
    }
    return read;
}

// The first, second, ... of them.
struct Order {
    int first, second, third, fourth;
};

EDM_HD int lowest(unsigned bits) {
    return bits & 1 ? 0 : bits & 2 ? 1 : bits & 4 ? 2 : 3;
}

EDM_HD Order order_of(unsigned bits) {
    Order order{};
    order.first = lowest(bits), bits &= bits - 1;
    order.second = lowest(bits), bits &= bits - 1;
    order.third = lowest(bits), bits &= bits - 1;
    order.fourth = lowest(bits);
    return order;
}

// total + c * term, or total itself. Both are formed and one chosen, which vectorises where a branch would not.
template <class T>
EDM_HD T plus(T total, Coefficient<T> c, T term) {
    const T more = total + c.value * term;
    return c.used ? more : total;
}

// The values of the first N slots that the row reads. Names, not arrays: those would not vectorise.
template <class T>
struct SlotsOf {
    const T *first, *second, *third, *fourth;
};

// It starts at -0.0, to which adding any number is exact, zeros included; a sum without terms is +0.0.
template <class T>
struct Sum {
    T start;
    Coefficient<T> x, D, first, second, third, fourth;
};

template <class T>
EDM_HD Sum<T> sum_of(double x, double D, double first = 0, double second = 0, double third = 0, double fourth = 0) {
    const bool any = x != 0 || D != 0 || first != 0 || second != 0 || third != 0 || fourth != 0;
    return {any ? T(-0.0) : T(0), coefficient<T>(x),      coefficient<T>(D),    coefficient<T>(first),
            coefficient<T>(second),   coefficient<T>(third), coefficient<T>(fourth)};
}

template <int N, class T>
EDM_HD T total(const Sum<T>& sum, T x, T D, const SlotsOf<T>& slots, int i) {
    T result = plus(plus(sum.start, sum.x, x), sum.D, D);
    if (N > 0) result = plus(result, sum.first, slots.first[i]);
    if (N > 1) result = plus(result, sum.second, slots.second[i]);
    if (N > 2) result = plus(result, sum.third, slots.third[i]);
    if (N > 3) result = plus(result, sum.fourth, slots.fourth[i]);
    return result;
}

template <int N, class T, class From>
EDM_HD Sum<T> sum_with_slots(double x, double D, const Order& at, const From& from) {
    return sum_of<T>(x, D, N > 0 ? from(at.first) : 0, N > 1 ? from(at.second) : 0, N > 2 ? from(at.third) : 0,
                     N > 3 ? from(at.fourth) : 0);
}

// x, the kept slot and the stored one, from x, D and the N slots that the row reads.
template <int W, int N, class T, class Io>
EDM_HD void linear_sums(const Row& r, const Order& at, int n, Io& io, const T* x, const T* D, T* next) {
    T room_1[W], room_2[W], room_3[W], room_4[W];
    const SlotsOf<T> slots = {N > 0 ? io.slot(at.first, room_1) : x, N > 1 ? io.slot(at.second, room_2) : x,
                              N > 2 ? io.slot(at.third, room_3) : x, N > 3 ? io.slot(at.fourth, room_4) : x};
    const auto to_next = sum_with_slots<N, T>(r.x_from_x, r.x_from_D, at, [&](int j) { return x_from_slot(r, j); });
    T keep[W];
    if (r.keep_slot >= 0) {              // before anything is written
        const auto to_keep =
            sum_with_slots<N, T>(r.keep_from_x, r.keep_from_D, at, [&](int j) { return keep_from_slot(r, j); });
        EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) keep[i] = total<N>(to_keep, x[i], D[i], slots, i);
    }
    if (r.store_slot >= 0) {
        const auto to_store = sum_of<T>(r.store_from_x, r.store_from_D);
        T room[W];
        T* store = io.slot_out(static_cast<int>(r.store_slot), room);
        EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) {
            const T stored = total<0>(to_store, x[i], D[i], slots, i);
            next[i] = total<N>(to_next, x[i], D[i], slots, i);
            store[i] = stored;
        }
        io.store_slot(static_cast<int>(r.store_slot), store);
    } else {
        EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) next[i] = total<N>(to_next, x[i], D[i], slots, i);
    }
    if (r.keep_slot >= 0) {
        T room[W];
        T* kept = io.slot_out(static_cast<int>(r.keep_slot), room);
        EDM_UNROLL for (int i = 0; i < n; ++i) kept[i] = keep[i];
        io.store_slot(static_cast<int>(r.keep_slot), kept);
    }
}

// Whether a sum of a LINEAR row has a term in D: F is not read otherwise.
EDM_HD bool has_D(const Row& r) {
    return r.x_from_D != 0 || (r.keep_slot >= 0 && r.keep_from_D != 0) || (r.store_slot >= 0 && r.store_from_D != 0);
}

template <class P, int W, class T, class Io>
EDM_HD void linear_D(const Row& r, int n, Io& io, const T* x, T (&D)[W]) {
    if (has_D(r)) {
        P room[W];
        float known_room[W];
        const P* F = network_output<P, W>(r, n, io, room);
        const float* known = io.known(known_room);
        const auto at = evaluation_of<P, T>(r);
        with_flags(r, io, [&](auto scaled, auto partly) {
            EDM_UNROLL for (int i = 0; i < n; ++i) D[i] = denoised(at, x[i], F[i], scaled, known + i, partly);
        });
    } else {
        EDM_UNROLL for (int i = 0; i < n; ++i) D[i] = T(0);
    }
}

template <class P, int W, class T, class Io>
EDM_HD void linear(const Row& r, int n, Io& io, const T* x, T* next) {
    T D[W];
    linear_D<P, W>(r, n, io, x, D);
    const unsigned read = slots_read(r);
    const Order at = order_of(read);
    switch ((read & 1) + (read >> 1 & 1) + (read >> 2 & 1) + (read >> 3 & 1)) {
        case 0: linear_sums<W, 0>(r, at, n, io, x, D, next); break;
        case 1: linear_sums<W, 1>(r, at, n, io, x, D, next); break;
        case 2: linear_sums<W, 2>(r, at, n, io, x, D, next); break;
        case 3: linear_sums<W, 3>(r, at, n, io, x, D, next); break;
        default: linear_sums<W, 4>(r, at, n, io, x, D, next); break;
    }
}

}  // namespace edm
