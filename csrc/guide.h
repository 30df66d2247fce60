// Guidance: the network's output F as the solver is to see it, from F and the output G of the evaluation that guides
// (reference.py, `_guided` and `guide_scale`). Included by advance.h.
#pragma once

#include "advance_call.h"

namespace edm {

constexpr int kGuideLanes = 512;  // partial sums of a sample: lane l sums elements l, l + 512, ... in this order

// guide_F * F + guide_G * G, or F itself where the row is not guided. The result may lie in `room`.
template <class P, int W, class Row, class Io>
EDM_HD const P* guided(const Row& row, int n, Io& io, P (&room)[W]) {
    const P* F = io.F(room);
    if (row.guide_G == 0) {
        return F;
    }
    P G_room[W];
    const P* G = io.G(G_room);
    const auto from_F = static_cast<P>(row.guide_F), from_G = static_cast<P>(row.guide_G);
    EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) room[i] = from_F * F[i] + from_G * G[i];
    return room;
}

// The same times the sample's scale, where the row rescales: what D is formed from.
template <class P, int W, class Row, class Io>
EDM_HD const P* network_output(const Row& row, int n, Io& io, P (&room)[W]) {
    const P* F = guided<P, W>(row, n, io, room);
    if (row.rescale == 0) {
        return F;
    }
    const auto scale = static_cast<P>(io.guide_scale());
    EDM_UNROLL EDM_SAME_INDEX for (int i = 0; i < n; ++i) room[i] = F[i] * scale;
    return room;
}

// Sums over elements of the plain and of the guided F, and of their squares.
struct GuideSums {
    double plain, plain_squares, guided, guided_squares;
};

EDM_HD GuideSums added(const GuideSums& a, const GuideSums& b) {
    return {a.plain + b.plain, a.plain_squares + b.plain_squares, a.guided + b.guided,
            a.guided_squares + b.guided_squares};
}

EDM_HD double guide_scale(const GuideSums& sums, double elements, double rescale) {
    const double wanted = sums.plain_squares - sums.plain * sums.plain / elements;
    const double found = sums.guided_squares - sums.guided * sums.guided / elements;
    const double ratio = found > 0 ? sqrt_rn((wanted > 0 ? wanted : 0.0) / found) : 1.0;
    return rescale * ratio + (1 - rescale);
}

}  // namespace edm
