// SPDX-License-Identifier: Apache-2.0
// The ring in front of a GPU. Slots are touched one by one and pinned a few at a time, so that copies from the first
// begin while the last are touched: map, touch and pin of 256 MiB at once take 43 ms, cudaHostAlloc 100 to 160.
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"
#include "firstlight/io/staging.h"

namespace firstlight {

namespace {

constexpr uint64_t kPiece = 2u << 20;  // a huge page
// Pinned by one call. The driver takes one call at a time, and a call beside readers 0.85 ms for 8 MiB, 1.05 for 16:
// two GPUs' slots one by one were ready 12 ms after a load was called for that takes 150 (two H200).
constexpr uint64_t kPinned = 32u << 20;

class CudaStaging final : public Staging {
 public:
  CudaStaging(Device device, StagingSize size)
      : device_(device),
        size_(size),
        memory_({}, size.slot_bytes * static_cast<uint64_t>(size.n_slots)),
        untouched_(static_cast<size_t>(size.n_slots)),
        slots_a_call_(static_cast<int>(std::max<uint64_t>(1, kPinned / size.slot_bytes))),
        done_(static_cast<size_t>(size.n_slots)) {
    begin_to_touch();
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
    if (i % slots_a_call_ == 0) pin(i, std::min(i + slots_a_call_, size_.n_slots));
    cuda::check(cudaEventCreateWithFlags(&done_[static_cast<size_t>(i)], cudaEventDisableTiming), "event of a slot");
  }

  void start(int i, std::byte* into, uint64_t bytes) override {
    cuda::use(device_);
    cuda::check(cudaMemcpyAsync(into, slot(i), bytes, cudaMemcpyHostToDevice, stream_),
                str("copy ", bytes, " bytes to ", to_string(device_)));
    cuda::check(cudaEventRecord(done_[static_cast<size_t>(i)], stream_), "event of a slot");
  }

  void fetch(int i, uint64_t at, const std::byte* from, uint64_t bytes) override {
    cuda::use(device_);
    cuda::check(cudaMemcpyAsync(slot(i) + at, from, bytes, cudaMemcpyDeviceToHost, stream_),
                str("copy ", bytes, " bytes from ", to_string(device_)));
    cuda::check(cudaEventRecord(done_[static_cast<size_t>(i)], stream_), "event of a slot");
  }

  bool finished(int i) override {
    cuda::use(device_);
    const cudaError_t code = cudaEventQuery(done_[static_cast<size_t>(i)]);
    if (code == cudaErrorNotReady) return false;
    cuda::check(code, str("copy to or from ", to_string(device_)));
    return true;
  }

 private:
  /// New memory takes 15 ms for 64 MiB on a virtual machine, by eight threads 5; then pinning takes 2. Meanwhile slots
  /// may be read into.
  void begin_to_touch() {
    constexpr uint64_t kMostThreads = 8, kPiecesEach = 4;
    for (std::atomic<int>& left : untouched_) left = static_cast<int>(pieces_of_slot());
    const uint64_t n_pieces = pieces_of_slot() * untouched_.size();
    for (uint64_t i = 0; i < std::clamp<uint64_t>(n_pieces / kPiecesEach, 1, kMostThreads); ++i) {
      touching_.push_back(start_thread<std::jthread>("touching the ring", [this] { touch(); }));
    }
  }

  void pin(int begin, int end) {
    for (auto at = static_cast<size_t>(begin); at < static_cast<size_t>(end); ++at) {
      for (int left = 0; (left = untouched_[at].load(std::memory_order_acquire)) != 0;) untouched_[at].wait(left);
    }
    cuda::check(
        cudaHostRegister(slot(begin), size_.slot_bytes * static_cast<uint64_t>(end - begin), cudaHostRegisterDefault),
        str("pin ", memory_.size(), " bytes of host memory (see ulimit -l)"));
    pinned_.push_back(slot(begin));
  }

  uint64_t pieces_of_slot() const { return (size_.slot_bytes + kPiece - 1) / kPiece; }

  void touch() {
    constexpr uint64_t kPage = 4096;
    for (;;) {
      const uint64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
      const int i = static_cast<int>(piece / pieces_of_slot());
      if (i >= size_.n_slots) return;
      const uint64_t begin = piece % pieces_of_slot() * kPiece, end = std::min(begin + kPiece, size_.slot_bytes);
      for (uint64_t at = begin; at < end; at += kPage) {
        // Not a plain store: a read may have been there before.
        auto zero = std::byte{0};
        std::atomic_ref(slot(i)[at]).compare_exchange_strong(zero, std::byte{0}, std::memory_order_relaxed);
      }
      std::atomic<int>& left = untouched_[static_cast<size_t>(i)];
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) left.notify_all();
    }
  }

  void release() noexcept {
    if (stream_ == nullptr || cudaSetDevice(device_.index) != cudaSuccess) return;  // nothing was prepared
    cudaStreamSynchronize(stream_);
    for (const cudaEvent_t event : done_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    cudaStreamDestroy(stream_);
    for (std::byte* begin : pinned_) cudaHostUnregister(begin);
    cudaGetLastError();
  }

  Device device_;
  StagingSize size_;
  Buffer memory_;
  std::atomic<uint64_t> next_{0};            // piece to be touched
  std::vector<std::atomic<int>> untouched_;  // pieces of each slot
  int slots_a_call_;                         // that are pinned together
  std::vector<std::byte*> pinned_;           // where each call began; of the thread that prepares
  cudaStream_t stream_ = nullptr;            // a second one was no faster
  std::vector<cudaEvent_t> done_;
  std::vector<std::jthread> touching_;
};

}  // namespace

std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size) {
  return std::make_unique<CudaStaging>(device, size);
}

}  // namespace firstlight
