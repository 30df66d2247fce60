// The CUDA operations as host functions: argument checks and one kernel launch each. They neither
// allocate nor synchronise, so they can be captured in a CUDA graph. `stream` is a cudaStream_t of
// CUDA device number `device`. Throws std::invalid_argument, and std::runtime_error with CUDA's own
// message when the launch fails.
#pragma once

#include "advance_call.h"

namespace edm {

// As advance_cpu, on device memory. What the host cannot see without waiting for the device (a row
// outside the table, a row the call lacks F, noise or slots for) marks the sample in bad_row and
// leaves the rest of it alone.
void advance_cuda(AdvanceCall call, int device, std::uintptr_t stream);

// As `normal` (normal_op.h), on device memory.
void normal_cuda(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
                 std::int64_t elements, int device, std::uintptr_t stream);

}  // namespace edm
