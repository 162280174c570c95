// SPDX-License-Identifier: Apache-2.0
// Owning, page-aligned memory of one device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "firstlight/device/device.h"

namespace firstlight {

/// Who reaches a GPU's memory. peers: all GPUs and processes that ask. own: this GPU alone (peers, where the driver
/// makes no such memory); making it does not hold up copies that other threads start. (Two H200: cudaMalloc of 8 GiB
/// where peers are to see it takes 11 ms, of 100 GB without peers 25, and no thread of the process reaches the driver
/// meanwhile.)
enum class Reach { peers, own };

/// Owns bytes on one device; move-only; base aligned to 2 MiB if it is at least that long, else to 4 KiB (so O_DIRECT
/// and cuFile can write into it; on a GPU 256 bytes below 2 MiB). CPU memory is anonymous, zero-filled on first touch,
/// and asks for huge pages from 2 MiB on (271 MB touched by two threads: 20 ms with huge pages, 64 ms without). GPU
/// memory is not zeroed.
class Buffer {
 public:
  Buffer() = default;
  /// Throws Error{out_of_memory} naming the size; Error{not_found, unsupported} for a GPU that is not there. 0 bytes is
  /// an empty buffer.
  Buffer(Device device, uint64_t size_bytes, Reach reach = Reach::peers);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  Device device() const noexcept { return device_; }
  std::byte* data() const noexcept { return data_; }
  uint64_t size() const noexcept { return size_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  Device device_;
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  Reach reach_ = Reach::peers;
  void* owned_ = nullptr;  // on a GPU: what is given back, data_ may lie behind it
};

/// Free memory of a device, bytes: what new allocations may take (CPU: MemAvailable, also bounded by the
/// cgroup and by ulimit -v).
/// On a GPU this makes its context.
uint64_t free_memory(Device device);
/// Of that, what threads still to be started will map, stacks and malloc's heaps, before anything is allocated: about,
/// and 0 unless ulimit -v counts it.
uint64_t mapped_by_threads(Device device, int n_threads);

}  // namespace firstlight
