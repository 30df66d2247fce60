#include "normal_op.h"

#ifdef EDM_X86_64
#include <cpuid.h>
#endif

#include <limits>
#include <stdexcept>

#include "parallel.h"

namespace edm {
namespace {

struct Isa {
    const char* name;
    NormalFill fill;
};

#ifdef EDM_X86_64
// Conversions of half precision, which came with AVX2; g++ before 11 does not know them in __builtin_cpu_supports.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// Fastest first. __builtin_cpu_supports also asks whether the system saves the wide registers.
std::vector<Isa> find_runnable() {
    std::vector<Isa> found;
#ifdef EDM_X86_64
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        found.push_back({"avx512", normal_fill_avx512});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        found.push_back({"avx2", normal_fill_avx2});
    }
#endif
    found.push_back({"generic", normal_fill_generic});
    return found;
}

// Found once: in a virtual machine the host answers CPUID, which takes 8 us.
const std::vector<Isa>& runnable() {
    static const std::vector<Isa> found = find_runnable();
    return found;
}

const Isa& find(const std::string& isa) {
    std::string allowed = "\"auto\"";
    for (const Isa& each : runnable()) {
        if (isa == "auto" || isa == each.name) {
            return each;
        }
        allowed += std::string(", \"") + each.name + "\"";
    }
    throw std::invalid_argument("isa must be one of " + allowed + " on this machine, got \"" + isa + "\"");
}

NormalFill find_fill(const std::string& isa) { return find(isa).fill; }

void require_size(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
    if (value < least || value > most) {
        throw std::invalid_argument(std::string(name) + " must be in [" + std::to_string(least) + ", " +
                                    std::to_string(most) + "], got " + std::to_string(value));
    }
}

void require_pointer(const char* name, std::uintptr_t address, std::size_t alignment) {
    if (address == 0 || address % alignment != 0) {
        throw std::invalid_argument(std::string(name) + " must be a non-null address aligned to " +
                                    std::to_string(alignment) + " bytes, got " + std::to_string(address));
    }
}

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 16;   // of bytes, with room

// Counters a thread must have to be worth waking: about 20 us of work.
constexpr std::int64_t kQuadsPerThread = 4096;

}  // namespace

std::vector<std::string> normal_isas() {
    std::vector<std::string> names;
    for (const Isa& each : runnable()) {
        names.emplace_back(each.name);
    }
    return names;
}

std::string choose_isa(const std::string& isa) { return find(isa).name; }

void check_normal(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
                  std::int64_t elements) {
    require_size("samples", samples, 0, kMost);
    require_size("elements", elements, 0, samples > 0 ? kMost / samples : kMost);
    if (samples > 0 && elements > 0) {
        require_pointer("seeds", seeds, alignof(std::uint64_t));
        require_pointer("draws", draws, alignof(std::uint64_t));
        require_pointer("out", out, alignof(float));
    }
}

void normal(std::uintptr_t seeds, std::uintptr_t draws, std::uintptr_t out, std::int64_t samples,
            std::int64_t elements, std::int64_t threads, const std::string& isa,
            std::int64_t first_quad) {
    check_normal(seeds, draws, out, samples, elements);
    require_size("first_quad", first_quad, 0, kMost);
    require_size("threads", threads, 1, 1024);
    const NormalFill fill = find_fill(isa);
    if (samples == 0 || elements == 0) {
        return;
    }

    const auto* seed = reinterpret_cast<const std::uint64_t*>(seeds);
    const auto* draw = reinterpret_cast<const std::uint64_t*>(draws);
    auto* z = reinterpret_cast<float*>(out);
    const std::int64_t quads = elements / 4 + (elements % 4 != 0 ? 1 : 0);
    const std::int64_t total = samples * quads;
    // The range is over all samples' counters, so one large sample is split as well as many small.
    const auto body = [=](std::int64_t begin, std::int64_t end) {
        while (begin < end) {
            const std::int64_t b = begin / quads, q = begin % quads;
            const std::int64_t stop = q + (end - begin) < quads ? q + (end - begin) : quads;
            const std::int64_t last = 4 * stop < elements ? 4 * stop : elements;
            const auto quad = static_cast<std::uint64_t>(first_quad + q);
            fill(seed[b], draw[b], quad, z + b * elements + 4 * q, last - 4 * q);
            begin += stop - q;
        }
    };
    const std::int64_t useful = total / kQuadsPerThread;
    parallel_ranges(total, useful < threads ? useful : threads, body);
}

}  // namespace edm
