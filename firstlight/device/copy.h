// SPDX-License-Identifier: Apache-2.0
// Bytes from any device to any other.
#pragma once
#include <cstddef>
#include <cstdint>

#include "firstlight/device/device.h"

namespace firstlight {

/// Blocks until the bytes are there. The ranges must not overlap. Throws Error{device}.
void copy(std::byte* to, Device to_device, const std::byte* from, Device from_device, uint64_t bytes);
/// Sets bytes to zero; blocks until that is done. Throws Error{device}.
void clear(std::byte* to, Device device, uint64_t bytes);

}  // namespace firstlight
