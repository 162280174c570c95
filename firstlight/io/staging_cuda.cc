// SPDX-License-Identifier: Apache-2.0
// The ring in front of a GPU. Slots are pinned one by one, so that copies from the first begin while the last are
// pinned: map, touch and pin of 256 MiB at once take 43 ms, cudaHostAlloc 100 to 160.
#include <algorithm>
#include <thread>
#include <vector>

#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"
#include "firstlight/io/staging.h"

namespace firstlight {

namespace {

class CudaStaging final : public Staging {
 public:
  CudaStaging(Device device, StagingSize size)
      : device_(device),
        size_(size),
        memory_({}, size.slot_bytes * static_cast<uint64_t>(size.n_slots)),
        pinned_(static_cast<size_t>(size.n_slots)),
        done_(static_cast<size_t>(size.n_slots)) {
    touch();
  }
  ~CudaStaging() override { release(); }
  CudaStaging(const CudaStaging&) = delete;
  CudaStaging& operator=(const CudaStaging&) = delete;

  int n_slots() const override { return size_.n_slots; }
  uint64_t slot_bytes() const override { return size_.slot_bytes; }
  uint64_t read_bytes() const override { return size_.read_bytes; }
  std::byte* slot(int i) override { return memory_.data() + size_.slot_bytes * static_cast<uint64_t>(i); }

  void prepare(int i) override {
    cuda::use(device_);
    if (i == 0) {
      cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream of the reader's copies");
    }
    const auto at = static_cast<size_t>(i);
    cuda::check(cudaHostRegister(slot(i), size_.slot_bytes, cudaHostRegisterDefault),
                str("pin ", memory_.size(), " bytes of host memory (see ulimit -l)"));
    pinned_[at] = true;
    cuda::check(cudaEventCreateWithFlags(&done_[at], cudaEventDisableTiming), "event of a slot");
  }

  void start(int i, std::byte* into, uint64_t bytes) override {
    cuda::use(device_);
    cuda::check(cudaMemcpyAsync(into, slot(i), bytes, cudaMemcpyHostToDevice, stream_),
                str("copy ", bytes, " bytes to ", to_string(device_)));
    cuda::check(cudaEventRecord(done_[static_cast<size_t>(i)], stream_), "event of a slot");
  }

  bool finished(int i) override {
    cuda::use(device_);
    const cudaError_t code = cudaEventQuery(done_[static_cast<size_t>(i)]);
    if (code == cudaErrorNotReady) return false;
    cuda::check(code, str("copy to ", to_string(device_)));
    return true;
  }

 private:
  /// New memory takes 15 ms for 64 MiB on a virtual machine, by eight threads 5; then pinning takes 2.
  void touch() {
    constexpr uint64_t kPage = 4096, kStep = 8u << 20;
    std::vector<std::jthread> threads;
    for (uint64_t begin = 0; begin < memory_.size(); begin += kStep) {
      threads.push_back(start_thread<std::jthread>("touching the ring", [this, begin] {
        const uint64_t end = std::min(begin + kStep, memory_.size());
        for (uint64_t at = begin; at < end; at += kPage) memory_.data()[at] = std::byte{0};
      }));
    }
  }

  void release() noexcept {
    if (stream_ == nullptr || cudaSetDevice(device_.index) != cudaSuccess) return;  // nothing was prepared
    cudaStreamSynchronize(stream_);
    for (const cudaEvent_t event : done_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    cudaStreamDestroy(stream_);
    for (int i = 0; i < size_.n_slots; ++i) {
      if (pinned_[static_cast<size_t>(i)]) cudaHostUnregister(slot(i));
    }
    cudaGetLastError();
  }

  Device device_;
  StagingSize size_;
  Buffer memory_;
  std::vector<bool> pinned_;       // of the thread that prepares
  cudaStream_t stream_ = nullptr;  // a second one was no faster
  std::vector<cudaEvent_t> done_;
};

}  // namespace

std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size) {
  return std::make_unique<CudaStaging>(device, size);
}

}  // namespace firstlight
