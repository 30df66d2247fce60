// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011, section 5). A pure function (key, counter) -> four 32-bit words.
//
// Reference: engine/noise.py, philox_ref.
#pragma once

#include "hd.h"

namespace edm {

struct Words {
    std::uint32_t w0, w1, w2, w3;
};

// One round: two 32 x 32 -> 64 bit products, whose halves are crossed and mixed with the key.
EDM_HD Words philox_round(Words c, std::uint32_t k0, std::uint32_t k1) {
    const std::uint64_t a = static_cast<std::uint64_t>(0xD2511F53u) * c.w0;
    const std::uint64_t b = static_cast<std::uint64_t>(0xCD9E8D57u) * c.w2;
    return {static_cast<std::uint32_t>(b >> 32) ^ c.w1 ^ k0, static_cast<std::uint32_t>(b),
            static_cast<std::uint32_t>(a >> 32) ^ c.w3 ^ k1, static_cast<std::uint32_t>(a)};
}

// Ten rounds; between two rounds the key words advance by the Weyl constants, modulo 2^32.
EDM_HD Words philox4x32(std::uint32_t k0, std::uint32_t k1, Words c) {
    for (int round = 0; round < 10; ++round) {
        c = philox_round(c, k0, k1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

}  // namespace edm
