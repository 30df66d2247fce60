// `advance` on the CPU: argument checks, run-time choice of instruction set, threads.
#pragma once

#include <string>
#include <vector>

#include "advance_call.h"

namespace edm {

// Elements a run holds on the CPU: what normal_isa.cpp makes at once, and a few KB a buffer, so that
// all of a run's buffers stay in the first-level cache.
constexpr int kCpuRun = 256;

// advance_isa.cpp, compiled once for each; see normal_op.h. Channels are folded, rows are checked.
using AdvanceUnits = void (*)(const AdvanceCall& call, std::int64_t begin, std::int64_t end);
void advance_units_generic(const AdvanceCall&, std::int64_t, std::int64_t);
void advance_units_avx2(const AdvanceCall&, std::int64_t, std::int64_t);
void advance_units_avx512(const AdvanceCall&, std::int64_t, std::int64_t);

// The scales of samples [begin, end) whose rows rescale what guidance made; before their units.
void guide_scales_generic(const AdvanceCall&, std::int64_t, std::int64_t);
void guide_scales_avx2(const AdvanceCall&, std::int64_t, std::int64_t);
void guide_scales_avx512(const AdvanceCall&, std::int64_t, std::int64_t);

// Names of a table's columns in the order this build reads them.
std::vector<std::string> row_columns();

// What can be checked without reading device memory; for both backends. Throws std::invalid_argument.
void check_call(const AdvanceCall& call);

// Carries out the call on the host, with the same bits for every `threads` and `isa` ("auto" or one
// of normal_isas()). Throws std::invalid_argument, and std::out_of_range for a row outside the table,
// before any buffer is written.
void advance_cpu(AdvanceCall call, std::int64_t threads, const std::string& isa);

}  // namespace edm
