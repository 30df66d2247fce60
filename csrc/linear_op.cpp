#include "linear_op.h"

#include <stdexcept>

#include "normal_op.h"
#include "parallel.h"

namespace edm {
namespace {

// Products a thread must have to be worth waking: some 10 us of work. A weight, which comes from memory, takes as long as 8.
constexpr std::int64_t kProductsPerThread = 200000;
constexpr std::int64_t kProductsPerWeight = 8;

void require(bool fine, const std::string& message) {
    if (!fine) {
        throw std::invalid_argument("linear: " + message);
    }
}

}  // namespace

void linear_cpu(const LinearCall& call, std::int64_t threads, const std::string& isa) {
    const LinearLoop loop = EDM_LOOP(linear_, isa);
    require(threads >= 1 && threads <= 1024, "threads must be in [1, 1024], got " + std::to_string(threads));
    require(call.rows >= 0 && call.inputs >= 0 && call.outputs >= 0, "sizes must not be negative");
    if (call.rows == 0 || call.outputs == 0) {
        return;
    }
    require((call.x != 0 && call.weight != 0) || call.inputs == 0, "x and weight must be there");
    require(call.out != 0, "out must be there");
    const std::int64_t useful = (call.rows + kProductsPerWeight) * call.inputs * call.outputs / kProductsPerThread;
    parallel_ranges(call.outputs, useful < threads ? useful : threads,
                    [&](std::int64_t begin, std::int64_t end) { loop(call, begin, end); });
}

}  // namespace edm
