// The networks' operations as one list that is carried out without Python between them: what a CUDA graph is to a GPU. A
// small network's operation takes 10 to 50 us on a CPU, and to be called from Python 8.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "attention_op.h"
#include "group_norm_op.h"
#include "linear_op.h"
#include "winograd_op.h"

namespace edm {

using NetworkCall = std::variant<GroupNormCall, LinearCall, WinogradCall, AttentionCall>;

// isa: "auto" or one of normal_isas(). Throws std::invalid_argument before anything is written.
void run_cpu(const NetworkCall& call, std::int64_t threads, const std::string& isa);

// Calls whose addresses are relative: where memory lies is said when they are run, so that several threads may run one
// program, each in memory of its own.
class Program {
public:
    // bases: for each of the call's addresses, in their order, the number of the base that it is counted from. Throws
    // std::invalid_argument if they are not as many.
    void add(const NetworkCall& call, const std::vector<std::size_t>& bases);

    // Calls [first, last). Throws std::invalid_argument where there are not so many calls, or too few bases.
    void run(const std::vector<std::uintptr_t>& bases, std::size_t first, std::size_t last, std::int64_t threads,
             const std::string& isa) const;

    std::size_t size() const { return steps_.size(); }

private:
    struct Step {
        NetworkCall call;
        std::vector<std::size_t> bases;
    };
    std::vector<Step> steps_;
    std::size_t last_base_ = 0;          // of all calls
};

}  // namespace edm
