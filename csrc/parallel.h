// Splits a range over a few short-lived threads. No pool and no OpenMP: nothing stays alive between
// calls, and torch's own OpenMP runtime in the same process is left alone.
#pragma once

#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace edm {

// Calls body(begin, end) over [0, total) cut into `parts` nearly equal ranges, one per thread, the
// last one on the caller's. `body` must not throw. Where the system refuses a thread, the caller
// does that part as well: slower, never wrong.
template <class Body>
void parallel_ranges(std::int64_t total, std::int64_t parts, const Body& body) {
    const std::int64_t base = total / parts, extra = total % parts;
    const auto edge = [&](std::int64_t i) { return i * base + (i < extra ? i : extra); };
    std::vector<std::thread> workers;
    workers.reserve(static_cast<std::size_t>(parts - 1));
    for (std::int64_t i = 0; i + 1 < parts; ++i) {
        try {
            workers.emplace_back(body, edge(i), edge(i + 1));
        } catch (const std::system_error&) {
            body(edge(i), edge(i + 1));
        }
    }
    body(edge(parts - 1), total);
    for (std::thread& worker : workers) {
        worker.join();
    }
}

}  // namespace edm
