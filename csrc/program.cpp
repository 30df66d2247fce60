#include "program.h"

#include <algorithm>
#include <stdexcept>

namespace edm {
namespace {

void carry_out(const GroupNormCall& call, std::int64_t threads, const std::string& isa) { group_norm_cpu(call, threads, isa); }
void carry_out(const LinearCall& call, std::int64_t threads, const std::string& isa) { linear_cpu(call, threads, isa); }
void carry_out(const WinogradCall& call, std::int64_t threads, const std::string& isa) { winograd_cpu(call, threads, isa); }
void carry_out(const AttentionCall& call, std::int64_t threads, const std::string& isa) { attention_cpu(call, threads, isa); }

void require(bool fine, const std::string& message) {
    if (!fine) {
        throw std::invalid_argument("program: " + message);
    }
}

}  // namespace

void run_cpu(const NetworkCall& call, std::int64_t threads, const std::string& isa) {
    std::visit([&](const auto& known) { carry_out(known, threads, isa); }, call);
}

void Program::add(const NetworkCall& call, const std::vector<std::size_t>& bases) {
    const std::size_t count = std::visit([](auto known) { return known.addresses().size(); }, call);
    require(bases.size() == count,
            "the call has " + std::to_string(count) + " addresses, got " + std::to_string(bases.size()) + " bases");
    for (const std::size_t base : bases) last_base_ = std::max(last_base_, base);
    steps_.push_back({call, bases});
}

void Program::run(const std::vector<std::uintptr_t>& bases, std::size_t first, std::size_t last, std::int64_t threads,
                  const std::string& isa) const {
    require(first <= last && last <= size(), "there are " + std::to_string(size()) + " calls, not [" +
                                                 std::to_string(first) + ", " + std::to_string(last) + ")");
    require(steps_.empty() || bases.size() > last_base_,
            "base " + std::to_string(last_base_) + " is asked for, got " + std::to_string(bases.size()) + " bases");
    for (std::size_t i = first; i < last; ++i) {
        NetworkCall call = steps_[i].call;
        std::visit(
            [&](auto& known) {
                const auto addresses = known.addresses();
                for (std::size_t j = 0; j < addresses.size(); ++j) *addresses[j] += bases[steps_[i].bases[j]];
            },
            call);
        run_cpu(call, threads, isa);
    }
}

}  // namespace edm
