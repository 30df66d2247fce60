// How the operands of products.h lie.
#pragma once

#include <cstdint>

namespace edm {

constexpr int kPanel = 32;               // columns of the second that lie together
constexpr std::int64_t kRun = 64;        // of the sum's index: as many lie in one row of the first, then the next row's
constexpr std::int64_t kSum = 32;        // products in one sum; sums of sums are two to three times as exact

}  // namespace edm
