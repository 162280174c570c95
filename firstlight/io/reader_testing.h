// SPDX-License-Identifier: Apache-2.0
// For the tests of readers: bytes by their place.
#pragma once
#include <cstddef>
#include <cstdint>

namespace firstlight {

/// What a test's files hold at `i`: neighbours differ, and so do equal places of different pages.
inline std::byte byte_at(uint64_t i) { return static_cast<std::byte>((i * 2654435761u) >> 13); }

}  // namespace firstlight
