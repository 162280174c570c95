// SPDX-License-Identifier: Apache-2.0
// What Buffer, Stream, copy and start_device do on a GPU: by cuda.cc, or, in a build without CUDA, by no_cuda.cc, which
// refuses.
#pragma once
#include <cstddef>
#include <cstdint>

#include "firstlight/device/buffer.h"
#include "firstlight/device/device.h"

namespace firstlight::gpu {

/// Aligned to 2 MiB if it is at least that long, else to 256 bytes; `owned` is what release() takes. Not zeroed.
/// `reach` becomes peers where the driver cannot make memory for one GPU alone.
std::byte* allocate(Device device, uint64_t size, Reach& reach, void*& owned);
void release(Device device, uint64_t size, Reach reach, void* owned) noexcept;
uint64_t free_memory(Device device);
/// At least one of the two is a GPU. Blocks.
void copy(std::byte* to, Device to_device, const std::byte* from, Device from_device, uint64_t bytes);
void clear(std::byte* to, Device device, uint64_t bytes);
void start(Device device);
/// A cudaStream_t that does not wait for the legacy stream.
void* make_stream(Device device);
void release_stream(Device device, void* stream) noexcept;
void wait(Device device, void* stream);

}  // namespace firstlight::gpu
