#include "advance_op.h"

#include <limits>
#include <stdexcept>

#include "advance.h"
#include "normal_op.h"
#include "parallel.h"

namespace edm {
namespace {

// Elements a thread must have to be worth waking: some 15 us of work.
constexpr std::int64_t kElementsPerThread = 16384;

std::size_t size_of(Dtype dtype) {
    switch (dtype) {
        case kFloat64: return 8;
        case kFloat32: return 4;
        case kFloat16:
        case kBFloat16: return 2;
    }
    throw std::invalid_argument("dtype must be one of Dtype, got " + std::to_string(static_cast<int>(dtype)));
}

void require(bool fine, const std::string& message) {
    if (!fine) {
        throw std::invalid_argument("advance: " + message);
    }
}

void require_address(const char* name, std::uintptr_t address, std::size_t alignment, bool optional) {
    require((optional || address != 0) && address % alignment == 0,
            std::string(name) + " must be " + (optional ? "0 or " : "") + "an address aligned to " +
                std::to_string(alignment) + " bytes, got " + std::to_string(address));
}

void require_network(const char* name, const Buffer& t, bool optional) {
    require_address(name, t.address, size_of(t.dtype), optional);
}

void require_noise(const char* name, const Buffer& t) {
    require(t.dtype == kFloat64 || t.dtype == kFloat32, std::string(name) + " must be float32 or float64");
    require_address(name, t.address, size_of(t.dtype), true);
}

const char* explain(Problem problem) {
    switch (problem) {
        case kFine: return nullptr;
        case kUnknownOp: return "its op is unknown";
        case kNeedsF: return "it consumes a network output, but F is None";
        case kNeedsG: return "it is guided, but G is None";
        case kNeedsScale: return "it rescales, but guide_scale is not allocated";
        case kNeedsSeeds: return "it draws noise, but there are neither seeds nor a buffer";
        case kNeedsDraw: return "its draw is negative or beyond the noise buffer";
        case kNeedsSlot: return "it uses a slot that is not allocated";
    }
    return "unknown problem";
}

void check_rows(const AdvanceCall& call) {
    const auto* base_row = reinterpret_cast<const std::int64_t*>(call.base_row);
    for (std::int64_t b = 0; b < call.samples; ++b) {
        const std::int64_t row = base_row[b] + call.k;
        const bool outside = row < 0 || row >= call.rows;
        const Problem problem =
            outside ? kFine : problem_of(reinterpret_cast<const Row*>(call.table)[row], call);
        if (!outside && problem == kFine) {
            continue;
        }
        const std::string what = "sample " + std::to_string(b) + " is at row " + std::to_string(row);
        if (outside) {
            throw std::out_of_range("advance: " + what + "; the table has " + std::to_string(call.rows) + " rows");
        }
        throw std::invalid_argument("advance: " + what + ": " + explain(problem));
    }
}

struct Loops {
    AdvanceUnits units, scales;
};

Loops find_loops(const std::string& isa) {
    const std::string name = choose_isa(isa);
#ifdef EDM_X86_64
    if (name == "avx512") return {advance_units_avx512, guide_scales_avx512};
    if (name == "avx2") return {advance_units_avx2, guide_scales_avx2};
#endif
    return {advance_units_generic, guide_scales_generic};
}

}  // namespace

std::vector<std::string> row_columns() {
#define EDM_NAME(name) #name,
    return {EDM_ROW_COLUMNS(EDM_NAME)};
#undef EDM_NAME
}

void check_call(const AdvanceCall& call) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 64;  // of bytes, with room
    require(call.samples >= 0 && call.channels >= 0 && call.pixels >= 0 && call.slot_count >= 0 && call.draws >= 0,
            "sizes must not be negative");
    std::int64_t room = most;
    for (const std::int64_t size : {call.samples, call.channels, call.pixels, call.slot_count + 1}) {
        require(size <= room, "sizes overflow: more elements than memory can hold");
        room /= size > 0 ? size : 1;
    }
    require(call.state_dtype == kFloat64 || call.state_dtype == kFloat32, "the state must be float64 or float32");
    const std::size_t state = size_of(call.state_dtype);
    require_address("x", call.x, state, false);
    require_address("slots", call.slots, state, call.slot_count == 0);
    require_address("table", call.table, 8, false);
    require_address("base_row", call.base_row, 8, false);
    require_address("bad_row", call.bad_row, 8, false);
    require_address("c_noise", call.c_noise, 4, false);
    require_address("seeds", call.seeds, 8, true);
    require_network("F", call.F, true);
    require_network("G", call.G, true);
    require(call.F.address == 0 || call.G.address == 0 || call.G.dtype == call.F.dtype, "G must have the dtype of F");
    require(call.copies >= 1 && call.copies <= most / (call.samples > 0 ? call.samples : 1),
            "copies must be from 1, and not overflow, got " + std::to_string(call.copies));
    require_address("guide_scale", call.guide_scale, 8, true);
    require_address("known", call.known, 4, true);
    require_network("net_in", call.net_in, false);
    require_noise("latents", call.latents);
    require_noise("eps", call.eps);
}

void advance_cpu(AdvanceCall call, std::int64_t threads, const std::string& isa) {
    require(threads >= 1 && threads <= 1024, "threads must be in [1, 1024], got " + std::to_string(threads));
    const Loops loops = find_loops(isa);
    if (call.samples == 0 || call.channels == 0 || call.pixels == 0) {
        return;
    }
    check_call(call);
    check_rows(call);
    const std::int64_t useful = call.samples * call.channels * call.pixels / kElementsPerThread;
    fold_channels(call);
    const std::int64_t total = call.samples * run_count(call.channels, call.pixels, kCpuRun);
    const std::int64_t workers = useful < threads ? useful : threads;
    if (call.guide_scale != 0) {
        parallel_ranges(call.samples, workers,
                        [&](std::int64_t begin, std::int64_t end) { loops.scales(call, begin, end); });
    }
    parallel_ranges(total, workers, [&](std::int64_t begin, std::int64_t end) { loops.units(call, begin, end); });
}

}  // namespace edm
