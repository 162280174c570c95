// SPDX-License-Identifier: Apache-2.0
// The ring in front of a GPU. Slots are pinned one by one, so that copies from the first begin while the last are
// pinned: map, touch and pin of 256 MiB at once take 43 ms, cudaHostAlloc 100 to 160.
#include <array>
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
      : device_(device),
        size_(size),
        memory_({}, size.slot_bytes * static_cast<uint64_t>(size.n_slots)),
        pinned_(static_cast<size_t>(size.n_slots)),
        done_(static_cast<size_t>(size.n_slots)) {}
  ~CudaStaging() override { release(); }
  CudaStaging(const CudaStaging&) = delete;
  CudaStaging& operator=(const CudaStaging&) = delete;

  int n_slots() const override { return size_.n_slots; }
  uint64_t slot_bytes() const override { return size_.slot_bytes; }
  std::byte* slot(int i) override { return memory_.data() + size_.slot_bytes * static_cast<uint64_t>(i); }

  void prepare(int i) override {
    cuda::use(device_);
    if (i == 0) {
      for (cudaStream_t& stream : streams_) {
        cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream of the reader's copies");
      }
    }
    const auto at = static_cast<size_t>(i);
    cuda::check(cudaHostRegister(slot(i), size_.slot_bytes, cudaHostRegisterDefault),
                str("pin ", memory_.size(), " bytes of host memory (see ulimit -l)"));
    pinned_[at] = true;
    cuda::check(cudaEventCreateWithFlags(&done_[at], cudaEventDisableTiming), "event of a slot");
  }

  void start(int i, std::byte* into, uint64_t bytes) override {
    cuda::use(device_);
    const cudaStream_t stream = streams_[static_cast<size_t>(i) % streams_.size()];
    cuda::check(cudaMemcpyAsync(into, slot(i), bytes, cudaMemcpyHostToDevice, stream),
                str("copy ", bytes, " bytes to ", to_string(device_)));
    cuda::check(cudaEventRecord(done_[static_cast<size_t>(i)], stream), "event of a slot");
  }

  bool finished(int i) override {
    cuda::use(device_);
    const cudaError_t code = cudaEventQuery(done_[static_cast<size_t>(i)]);
    if (code == cudaErrorNotReady) return false;
    cuda::check(code, str("copy to ", to_string(device_)));
    return true;
  }

 private:
  void release() noexcept {
    if (!pinned_.empty() && streams_[0] == nullptr) return;  // nothing was prepared, perhaps there is no device
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    for (const cudaStream_t stream : streams_) {
      if (stream != nullptr) cudaStreamSynchronize(stream);
    }
    for (const cudaEvent_t event : done_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    for (const cudaStream_t stream : streams_) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
    for (int i = 0; i < size_.n_slots; ++i) {
      if (pinned_[static_cast<size_t>(i)]) cudaHostUnregister(slot(i));
    }
    cudaGetLastError();
  }

  Device device_;
  StagingSize size_;
  Buffer memory_;
  std::vector<bool> pinned_;               // of the thread that prepares
  std::array<cudaStream_t, 2> streams_{};  // one copy begins while another ends
  std::vector<cudaEvent_t> done_;
};

}  // namespace

std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size) {
  return std::make_unique<CudaStaging>(device, size);
}

}  // namespace firstlight
