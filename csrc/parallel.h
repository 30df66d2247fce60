// Splits a range over threads that are there already, because starting them costs more than the work of a usual call
// (two threads were slower than one at 64x3x32x32): those of the OpenMP runtime that torch brings, which is looked up and
// not linked, or of a small pool.
#pragma once

#include <cstdint>
#include <functional>

namespace edm {

using RangeBody = std::function<void(std::int64_t begin, std::int64_t end)>;

// Calls body(begin, end) over [0, total) cut into ranges, on at most `threads` threads, the caller's among them; returns
// when all are done. `body` must not throw. Ranges that no other thread takes, because it was refused by the system or
// serves another caller, are done by the caller: slower, never wrong.
void parallel_ranges(std::int64_t total, std::int64_t threads, const RangeBody& body);

// Calls body(unit, worker) for units [0, total), each as soon as one of the workers, as many threads at most, is free: what
// belongs to a worker is used by one thread at a time. `body` must not throw.
void share_out(std::int64_t total, std::int64_t workers, const RangeBody& body);

}  // namespace edm
