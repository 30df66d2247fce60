// torch asks a guard which CUDA device is current; a build without CUDA has none.
#include <c10/core/impl/FakeGuardImpl.h>

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>)
}  // namespace c10::impl
