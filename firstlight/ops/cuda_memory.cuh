// SPDX-License-Identifier: Apache-2.0
// Memory of the CUDA back end's own: grows by need, moves when it grows.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "firstlight/base/str.h"
#include "firstlight/device/cuda.h"

namespace firstlight::cuda {

/// Device memory that only grows; what it held is lost then.
class DeviceScratch {
 public:
  DeviceScratch() = default;
  DeviceScratch(DeviceScratch&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceScratch& operator=(DeviceScratch&&) = delete;
  ~DeviceScratch() { cudaFree(data_); }
  /// True if it had to move: addresses given out before are void. Waits for `stream` then.
  bool reserve(uint64_t bytes, cudaStream_t stream) {
    if (bytes <= bytes_) return false;
    if (data_) {
      check(cudaStreamSynchronize(stream), "wait before scratch grows");
      check(cudaFree(data_), "free scratch");
    }
    data_ = nullptr;
    bytes_ = 0;
    check(cudaMalloc(&data_, bytes), str("allocate ", bytes, " bytes of scratch"));
    bytes_ = bytes;
    return true;
  }
  bool holds(uint64_t bytes) const { return bytes <= bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

/// The same in pinned host memory.
class PinnedScratch {
 public:
  PinnedScratch() = default;
  PinnedScratch(const PinnedScratch&) = delete;
  PinnedScratch& operator=(const PinnedScratch&) = delete;
  ~PinnedScratch() { cudaFreeHost(data_); }
  bool reserve(uint64_t bytes, cudaStream_t stream) {
    if (bytes <= bytes_) return false;
    check(cudaStreamSynchronize(stream), "wait before pinned memory grows");
    check(cudaFreeHost(data_), "free pinned memory");
    data_ = nullptr;
    bytes_ = 0;
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), str("allocate ", bytes, " bytes of pinned memory"));
    bytes_ = bytes;
    return true;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace firstlight::cuda
