// SPDX-License-Identifier: Apache-2.0
// The ring in front of a GPU. Registering touched huge pages takes 10 ms for 256 MiB; cudaHostAlloc takes 100 to 160.
#include <vector>

#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"
#include "firstlight/io/staging.h"

namespace firstlight {

namespace {

class CudaStaging final : public Staging {
 public:
  CudaStaging(Device device, StagingSize size)
      : device_(device), size_(size), memory_({}, size.slot_bytes * static_cast<uint64_t>(size.n_slots)) {
    constexpr uint64_t kStep = 4096;  // where there are no huge pages, every page must have been touched
    for (uint64_t at = 0; at < memory_.size(); at += kStep) memory_.data()[at] = std::byte{0};
    cuda::use(device_);
    try {
      cuda::check(cudaHostRegister(memory_.data(), memory_.size(), cudaHostRegisterPortable),
                  str("pin ", memory_.size(), " bytes of host memory (see ulimit -l)"));
      registered_ = true;
      cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream of the reader's copies");
      done_.resize(static_cast<size_t>(size.n_slots));
      for (cudaEvent_t& event : done_) {
        // Blocking: who waits for a copy leaves its core to those who read.
        cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
                    "event of a slot");
      }
    } catch (...) {
      release();
      throw;
    }
  }
  ~CudaStaging() override { release(); }
  CudaStaging(const CudaStaging&) = delete;
  CudaStaging& operator=(const CudaStaging&) = delete;

  int n_slots() const override { return size_.n_slots; }
  uint64_t slot_bytes() const override { return size_.slot_bytes; }
  std::byte* slot(int i) override { return memory_.data() + size_.slot_bytes * static_cast<uint64_t>(i); }

  void start(int i, std::byte* into, uint64_t bytes) override {
    cuda::use(device_);
    cuda::check(cudaMemcpyAsync(into, slot(i), bytes, cudaMemcpyHostToDevice, stream_),
                str("copy ", bytes, " bytes to ", to_string(device_)));
    cuda::check(cudaEventRecord(done_[static_cast<size_t>(i)], stream_), "event of a slot");
  }

  void finish(int i) override {
    cuda::use(device_);
    cuda::check(cudaEventSynchronize(done_[static_cast<size_t>(i)]), str("copy to ", to_string(device_)));
  }

 private:
  void release() noexcept {
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (const cudaEvent_t event : done_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    if (registered_) cudaHostUnregister(memory_.data());
    cudaGetLastError();
  }

  Device device_;
  StagingSize size_;
  Buffer memory_;
  bool registered_ = false;
  cudaStream_t stream_ = nullptr;
  std::vector<cudaEvent_t> done_;
};

}  // namespace

std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size) {
  return std::make_unique<CudaStaging>(device, size);
}

}  // namespace firstlight
