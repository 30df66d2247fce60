// Memory for a call's intermediate results.
#pragma once

#include <cstdint>

namespace edm {

// So many floats, aligned to 64 bytes, that the calling thread keeps for its next call, some 4 MB a worker, for attention up
// to 9: new memory would cost a page fault every 4 KB, in every call.
float* scratch_of(std::int64_t count);

}  // namespace edm
