// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/nccl_comm_cuda.h"

#include <cstring>
#include <future>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/base/timeline.h"
#include "firstlight/device/cuda.h"

namespace firstlight {
namespace {

class NcclComm final : public CudaProcessComm {
 public:
  NcclComm(ProcessComm& processes, Device device, const cuda::NcclApi& api, std::string_view why)
      : host_(processes), device_(device), api_(api), why_(why) {
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
      api_.check(api_.init_rank(&comm_, size(), id, rank()), str("rank ", rank(), " of ", size(), ": bring up NCCL"));
      return seconds_since_exec() - begin;
    });
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
    meet();
    api_.check(api_.all_reduce(data.data(), data.data(), data.size(), api_.kF32, api_.kSum, comm_, queue_of(stream)),
               "queue a sum");
  }

  void leave() override {
    wait_until_up();
    host_.barrier();
  }

 private:
  static cudaStream_t queue_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

  /// All ranks are here before, so that none of them waits on its GPU for a rank that computes on its host.
  void meet() {
    wait_until_up();
    cuda::use(device_);
    host_.barrier();
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
  // Never destroyed or aborted: either waits until all recordings that hold it are gone, and those outlive this object.
  // It ends with the process.
  void* comm_ = nullptr;
  std::future<double> coming_up_;
};

}  // namespace

std::unique_ptr<CudaProcessComm> make_nccl_comm(ProcessComm& processes, Device device, const cuda::NcclApi& api,
                                                std::string_view why) {
  return std::make_unique<NcclComm>(processes, device, api, why);
}

}  // namespace firstlight
