// SPDX-License-Identifier: Apache-2.0
// A GPU's memory as another process of the host sees it (CUDA IPC), and host memory of several processes as a GPU does.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace firstlight::cuda {

/// What one process tells another of a place in its memory: plain bytes.
struct ExportedMemory {
  cudaIpcMemHandle_t handle{};  ///< of the whole allocation, …
  uint64_t offset = 0;          ///< … in which the place is
};
/// `at`: on the current GPU, somewhere in an allocation of cudaMalloc, which stays until all have closed it. Throws
/// Error{device} where the driver has no IPC.
ExportedMemory export_memory(const void* at);

/// Owns what has been opened of other processes' memory. One thread at a time.
class ImportedMemory {
 public:
  ImportedMemory() = default;
  ~ImportedMemory() { close(); }
  ImportedMemory(const ImportedMemory&) = delete;
  ImportedMemory& operator=(const ImportedMemory&) = delete;
  /// Where the current GPU reads and writes the place; an allocation is opened once, with peer access if it is another
  /// GPU's. Throws Error{device} where that is refused.
  std::byte* at(const ExportedMemory& memory);
  /// No kernel uses any of it any more.
  void close() noexcept;

 private:
  std::vector<std::pair<std::string, std::byte*>> opened_;  // by the bytes of their handles
};

/// Host memory that the caller owns, pinned and mapped for all GPUs of this process while this object is.
class RegisteredMemory {
 public:
  RegisteredMemory() = default;
  ~RegisteredMemory();
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;
  /// Once. Whole pages. Throws Error{device, out_of_memory}.
  void add(std::span<std::byte> pages);
  /// Where a GPU finds what the host finds at `at`.
  template <class T>
  T* on_gpu(T* at) const {
    return reinterpret_cast<T*>(on_gpu_ + (reinterpret_cast<std::byte*>(at) - host_));
  }

 private:
  std::byte *host_ = nullptr, *on_gpu_ = nullptr;
};

}  // namespace firstlight::cuda
