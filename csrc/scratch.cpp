#include "scratch.h"

#include <memory>
#include <new>

namespace edm {
namespace {

struct Freed {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
};

}  // namespace

float* scratch_of(std::int64_t count) {
    thread_local std::unique_ptr<float[], Freed> memory;
    thread_local std::int64_t size = 0;
    if (size < count) {
        size = 0;
        memory.reset();
        memory.reset(static_cast<float*>(::operator new[](static_cast<std::size_t>(count) * 4, std::align_val_t(64))));
        size = count;
    }
    return memory.get();
}

}  // namespace edm
