// SPDX-License-Identifier: Apache-2.0
// GPU memory by the driver's calls for address ranges and physical memory (cuMemCreate, cuMemMap): what Reach::own is.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "firstlight/device/device.h"

namespace firstlight::cuda {

/// Whether the device's driver makes such memory.
bool maps_memory(Device device);
/// Fresh memory, whole units of 2 MiB, aligned to as much. Throws Error{out_of_memory, device} that begins with `what`.
std::byte* map_memory(Device device, uint64_t size, const std::string& what);
/// Waits for the device: nothing may use the memory any more. `size` as it was asked for.
void unmap_memory(Device device, std::byte* data, uint64_t size) noexcept;

}  // namespace firstlight::cuda
