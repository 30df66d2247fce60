#include "group_norm_op.h"

#include <memory>
#include <stdexcept>

#include "normal_op.h"
#include "parallel.h"

namespace edm {
namespace {

// Elements a thread must have to be worth waking: some 5 us of work.
constexpr std::int64_t kElementsPerThread = 16384;

using Floats = std::unique_ptr<float[]>;

Floats floats(std::int64_t count) { return Floats(new float[static_cast<std::size_t>(count)]); }

void require(bool fine, const std::string& message) {
    if (!fine) {
        throw std::invalid_argument("group_norm: " + message);
    }
}

void check(const GroupNormCall& call, std::int64_t threads) {
    require(threads >= 1 && threads <= 1024, "threads must be in [1, 1024], got " + std::to_string(threads));
    require(call.samples >= 0 && call.height >= 0 && call.width >= 0, "sizes must not be negative");
    require(call.beside_channels >= 0 && call.beside_channels <= call.channels, "beside has too many channels");
    require((call.beside != 0) == (call.beside_channels > 0), "beside and its channels go together");
    require(call.groups >= 1 && call.channels % call.groups == 0,
            std::to_string(call.channels) + " channels are not " + std::to_string(call.groups) + " groups");
    require(call.dtype != kFloat64, "x must be float32, float16 or bfloat16");
    const bool fits = call.resampling != kDown || (call.height % 2 == 0 && call.width % 2 == 0);
    require(fits, std::to_string(call.height) + " by " + std::to_string(call.width) + " pixels cannot be halved");
    require(call.resampling == kNone || (call.taps >= 2 && call.taps <= kMostTaps && call.taps % 2 == 0),
            "a filter has 2, 4, 6 or 8 taps, got " + std::to_string(call.taps));
    require(call.x != 0 && call.out != 0 && call.weight != 0 && call.bias != 0, "x, out, weight, bias must be there");
}

}  // namespace

void group_norm_cpu(const GroupNormCall& call, std::int64_t threads, const std::string& isa) {
    const GroupNormLoops loops = EDM_LOOP(group_norm_loops_, isa)();
    if (call.samples == 0 || call.pixels() == 0 || call.channels == 0) {
        return;
    }
    check(call, threads);
    const std::int64_t units = call.samples * ((call.pixels() + kChunk - 1) / kChunk);
    const std::int64_t useful = call.samples * call.pixels() * call.channels / kElementsPerThread;
    const std::int64_t workers = useful < threads ? useful : threads;
    const Floats sums = floats(units * 2 * call.channels), lines = floats(call.samples * kLines * call.channels);
    const auto run = [&](GroupNormLoop loop, std::int64_t total) {
        parallel_ranges(total, workers, [&](std::int64_t begin, std::int64_t end) {
            loop(call, sums.get(), lines.get(), begin, end);
        });
    };
    run(loops.sum, units);
    run(loops.fold, call.samples);
    if (call.resampling == kNone) {
        run(loops.apply, units);
        return;
    }
    const std::int64_t rows = call.samples * call.out_height(), row = (call.width + call.out_width()) * call.channels;
    const std::int64_t parts = workers < 1 ? 1 : workers < rows ? workers : rows;
    const Floats scratch = floats(parts * row);              // here, because bodies must not throw
    parallel_ranges(parts, parts, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end; ++part) {
            loops.resample(call, scratch.get() + part * row, lines.get(), rows * part / parts, rows * (part + 1) / parts);
        }
    });
}

}  // namespace edm
