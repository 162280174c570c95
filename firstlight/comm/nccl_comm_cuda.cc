// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/nccl_comm_cuda.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/base/timeline.h"
#include "firstlight/device/cuda.h"

namespace firstlight {
namespace {

/// NCCL's communicator, from when it is up. One thread uses it; another may give it up, once.
class Communicator {
 public:
  explicit Communicator(const cuda::NcclApi& api) : api_(api) {}
  ~Communicator() { give_up(); }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  void bring_up(const cuda::NcclApi::Id& id, int size, int rank) {
    void* made = nullptr;
    api_.check(api_.init_rank(&made, size, id, rank), str("rank ", rank, " of ", size, ": bring up NCCL"));
    const std::lock_guard lock(mutex_);
    comm_ = made;
    if (given_up_.load()) end_by(api_.abort);
  }
  /// Kernels that wait for other ranks end; at the latest when the call that is under way returns, which is not waited
  /// for, since it may wait for a rank that is gone.
  void give_up() {
    given_up_.store(true);
    std::unique_lock lock(mutex_, std::chrono::milliseconds(100));
    if (lock.owns_lock()) end_by(api_.abort);
  }
  void end() {
    const std::lock_guard lock(mutex_);
    end_by(api_.destroy);
  }
  /// fn(NCCL's handle) queues something and returns.
  template <class Fn>
  void use(std::string_view what, Fn fn) {
    const std::lock_guard lock(mutex_);
    const int status = comm_ != nullptr ? fn(comm_) : 0;  // given up: the group's check() says why
    if (given_up_.load()) end_by(api_.abort);
    api_.check(status, what);
  }

 private:
  void end_by(int (*call)(void*)) {
    if (comm_ != nullptr) call(std::exchange(comm_, nullptr));
  }

  const cuda::NcclApi api_;
  std::timed_mutex mutex_;
  void* comm_ = nullptr;
  std::atomic<bool> given_up_{false};
};

class NcclComm final : public CudaProcessComm {
 public:
  NcclComm(ProcessComm& processes, Device device, const cuda::NcclApi& api, std::string_view why)
      : host_(processes), device_(device), api_(api), why_(why), communicator_(api) {
    cuda::NcclApi::Id id;
    if (rank() == 0) api_.check(api_.get_unique_id(&id), "begin a group of NCCL");
    std::vector<std::byte> bytes(sizeof id);
    std::memcpy(bytes.data(), &id, sizeof id);
    host_.broadcast(bytes);
    std::memcpy(&id, bytes.data(), sizeof id);
    path_ = str("NCCL ", api_.version(), " (", why_, ")");
    coming_up_ = start_future("NCCL", [this, id] {
      cuda::use(device_);
      const double begin = seconds_since_exec();
      communicator_.bring_up(id, size(), rank());
      return seconds_since_exec() - begin;
    });
    host_.tell_of_failure([this] { communicator_.give_up(); });
  }
  ~NcclComm() override {
    host_.tell_of_failure({});
    if (coming_up_.valid()) coming_up_.wait();
  }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string_view path() const override { return path_; }
  bool recordable() const override { return true; }
  int least(int mine) override { return host_.least(mine); }
  void check() override { host_.check(); }
  void fail(std::exception_ptr cause) override { host_.fail(cause); }
  void reset() override {}

  void all_reduce_sum(std::span<float> data, const Stream& stream) override {
    queue("a sum", [&](void* comm) {
      return api_.all_reduce(data.data(), data.data(), data.size(), api_.kF32, api_.kSum, comm, queue_of(stream));
    });
  }

  void all_gather(std::span<const float> mine, std::span<float> out, const Stream& stream) override {
    if (out.size() != mine.size() * static_cast<size_t>(size())) {
      throw Error(ErrorKind::bug, str("all_gather: ", size(), " pieces of ", mine.size(), " floats into ", out.size()));
    }
    queue("a gather", [&](void* comm) {
      return api_.all_gather(mine.data(), out.data(), mine.size(), api_.kF32, comm, queue_of(stream));
    });
  }

  void leave() override {
    wait_until_up();
    cuda::use(device_);
    cuda::check(cudaDeviceSynchronize(), "end the last collective");
    host_.barrier();
    communicator_.end();
  }

 private:
  static cudaStream_t queue_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

  /// All ranks are here before, so that none of them waits on its GPU for a rank that computes on its host.
  template <class Fn>
  void queue(std::string_view what, Fn fn) {
    wait_until_up();
    cuda::use(device_);
    host_.barrier();
    communicator_.use(what, fn);
  }

  void wait_until_up() {
    if (!coming_up_.valid()) return;
    const double seconds = coming_up_.get();
    path_ = str("NCCL ", api_.version(), " (", why_, "), up in ", human_seconds(seconds));
  }

  ProcessComm& host_;
  const Device device_;
  const cuda::NcclApi api_;
  const std::string why_;
  std::string path_;
  Communicator communicator_;
  std::future<double> coming_up_;
};

}  // namespace

std::unique_ptr<CudaProcessComm> make_nccl_comm(ProcessComm& processes, Device device, const cuda::NcclApi& api,
                                                std::string_view why) {
  return std::make_unique<NcclComm>(processes, device, api, why);
}

}  // namespace firstlight
