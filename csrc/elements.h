// The element types of a network's tensors, for loops that compute in float32. Only for files compiled once per
// instruction set, hence the unnamed namespace: see hd.h.
#pragma once

#include "advance_call.h"
#include "half.h"

namespace edm {
namespace {

struct Float16 {
    std::uint16_t bits;
    float value() const { return f16_to_float(bits); }
    static Float16 of(float x) { return {float_to_f16(x)}; }
};
struct BFloat16 {
    std::uint16_t bits;
    float value() const { return bf16_to_float(bits); }
    static BFloat16 of(float x) { return {float_to_bf16(x)}; }
};
struct Float32 {
    float bits;
    float value() const { return bits; }
    static Float32 of(float x) { return {x}; }
};

template <class S>
const S* pointer(std::uintptr_t address, std::int64_t offset) {
    return reinterpret_cast<const S*>(address) + offset;
}

// Calls body with the element type as an argument.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
    if (dtype == kFloat16) {
        body(Float16{});
    } else if (dtype == kBFloat16) {
        body(BFloat16{});
    } else {
        body(Float32{});
    }
}

}  // namespace
}  // namespace edm
