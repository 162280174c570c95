// SPDX-License-Identifier: Apache-2.0
// Collectives between GPUs of one process. The host only meets: all ranks' threads before a collective is queued, and
// again when all have queued it. So a rank that fails, or waits for weights, is waited for by threads, where its cause
// can be told, not by a GPU; and what each has brought (addresses, counts) is read by all before it changes.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/comm.h"
#include "firstlight/comm/meeting.h"
#include "firstlight/comm/peer_queue_cuda.h"
#include "firstlight/comm/through_host_cuda.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"

namespace firstlight {
namespace {

using cuda::check;
using peer::Call;

/// "" if each of these GPUs can be made to see all others' memory.
std::string why_not_peers(std::span<const Device> devices, const CudaCommOptions& options) {
  if (!options.peer_access) return "as asked";
  if (devices.size() > peer::kMaxRanks) return str(devices.size(), " ranks; peers are at most ", peer::kMaxRanks);
  for (size_t i = 0; i < devices.size(); ++i) {
    for (size_t j = 0; j < devices.size(); ++j) {
      if (i == j) continue;
      if (devices[i] == devices[j])
        return str("ranks ", std::min(i, j), " and ", std::max(i, j), " share ", to_string(devices[i]));
      int can = 0;
      check(cudaDeviceCanAccessPeer(&can, devices[i].index, devices[j].index), "ask for peer access");
      if (can == 0) return str(to_string(devices[i]), " cannot reach the memory of ", to_string(devices[j]));
    }
  }
  for (const Device device : devices) {
    cuda::use(device);
    for (const Device other : devices) {
      if (other == device) continue;
      const cudaError_t code = cudaDeviceEnablePeerAccess(other.index, 0);
      if (code == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
      } else if (code != cudaSuccess) {
        cudaGetLastError();
        return str(to_string(device), " to ", to_string(other), ": ", cudaGetErrorString(code));
      }
    }
  }
  return "";
}

/// What the ends of one group share.
struct Group {
  Group(std::span<const Device> gpus, const CudaCommOptions& options)
      : devices(gpus.begin(), gpus.end()), meeting(static_cast<int>(gpus.size()), options.spin), posts(gpus.size()) {
    for (const Device device : devices) cuda::use(device);  // all of them are there
    stop.reserve(sizeof(uint32_t), {});
    const std::string why = devices.size() == 1 ? "" : why_not_peers(devices, options);
    peers = why.empty();
    path = devices.size() == 1 ? "one rank" : peers ? "peer access" : str("host memory (", why, ")");
    if (peers && devices.size() > 1) {
      for (const Device device : devices) {
        inboxes.emplace_back(device, peer::inbox_bytes(static_cast<int>(devices.size())));
        signals.emplace_back(device, sizeof(peer::Signals));
        peer::load_kernels();
      }
    }
    make_new();
  }
  ~Group() { wait_for_devices(); }

  void wait_for_devices() {
    for (const Device device : devices) {
      if (cudaSetDevice(device.index) == cudaSuccess) cudaDeviceSynchronize();  // fails where a pass has failed: known
    }
    cudaGetLastError();
  }

  void make_new() {
    *stop.as<volatile uint32_t>() = 0;
    for (size_t r = 0; r < inboxes.size(); ++r) {
      cuda::use(devices[r]);
      clear(signals[r].data(), devices[r], signals[r].size());
      check(cudaMemsetAsync(inboxes[r].data(), 0xff, inboxes[r].size(), cudaStreamPerThread), "empty an inbox");
      check(cudaStreamSynchronize(cudaStreamPerThread), "empty an inbox");
    }
  }

  /// What a rank brings to a collective; written before the first meeting, read until the second.
  struct Post {
    void* data = nullptr;
    size_t n = 0;
  };

  const std::vector<Device> devices;
  Meeting meeting;
  bool peers = false;
  std::string path;
  std::vector<Buffer> inboxes, signals;  // of each rank
  Pinned stop;
  std::vector<Post> posts;
};

class CudaComm final : public Comm {
 public:
  CudaComm(std::shared_ptr<Group> group, std::unique_ptr<Comm> host, int rank)
      : group_(std::move(group)),
        host_(std::move(host)),
        rank_(rank),
        device_(group_->devices[static_cast<size_t>(rank)]) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->meeting.size(); }
  std::string_view path() const override { return group_->path; }
  bool recordable() const override { return group_->peers; }
  int least(int mine) override { return group_->meeting.least(rank_, mine); }
  void check() override;
  void fail(std::exception_ptr cause) override;
  void reset() override;
  void all_reduce_sum(std::span<float> data, const Stream& stream) override;

 private:
  Call meet(void* data, size_t n);

  std::shared_ptr<Group> group_;
  std::unique_ptr<Comm> host_;
  const int rank_;
  const Device device_;
  ThroughHost through_host_;
};

void CudaComm::check() {
  group_->meeting.check();
  if (*group_->stop.as<volatile uint32_t>() == 0) return;
  fail(std::make_exception_ptr(
      Error(ErrorKind::device, str("a collective of rank ", rank_, " waited 10 s and more for another rank's GPU"))));
  group_->meeting.check();
}

void CudaComm::fail(std::exception_ptr cause) {
  group_->meeting.fail(cause);
  if (host_) host_->fail(cause);
  *group_->stop.as<volatile uint32_t>() = 1;  // GPUs that wait look there
}

void CudaComm::reset() {
  group_->wait_for_devices();
  group_->make_new();
  group_->meeting.reset();
  if (host_) host_->reset();
}

/// All ranks' threads are here, with as many floats; the addresses that each has brought.
Call CudaComm::meet(void* data, size_t n) {
  cuda::use(device_);
  group_->posts[static_cast<size_t>(rank_)] = {data, n};
  group_->meeting.barrier();
  Call call;
  call.rank = rank_;
  call.size = size();
  call.n = static_cast<int64_t>(n);
  call.stop = group_->stop.as<uint32_t>();
  for (int r = 0; r < size(); ++r) {
    const auto at = static_cast<size_t>(r);
    const Group::Post& theirs = group_->posts[at];
    if (theirs.n != n || reinterpret_cast<uintptr_t>(theirs.data) % 16 != 0) {
      fail(std::make_exception_ptr(
          Error(ErrorKind::bug, str("collective: rank ", r, " has ", theirs.n, " floats at ", theirs.data, ", rank ",
                                    rank_, " has ", n, "; expected as many at multiples of 16 bytes"))));
      group_->meeting.check();
    }
    call.data[at] = static_cast<float*>(theirs.data);
    call.inbox[at] = reinterpret_cast<peer::Words*>(group_->inboxes[at].data());
    call.signals[at] = reinterpret_cast<peer::Signals*>(group_->signals[at].data());
  }
  return call;
}

void CudaComm::all_reduce_sum(std::span<float> data, const Stream& stream) {
  if (size() == 1) return check();
  if (!group_->peers) return through_host_.all_reduce_sum(*host_, device_, data, stream);
  const Call call = meet(data.data(), data.size());
  peer::queue_sum(call, static_cast<cudaStream_t>(stream.handle()));
  group_->meeting.barrier();
}

}  // namespace

std::vector<std::unique_ptr<Comm>> make_cuda_comms(std::span<const Device> devices, const CudaCommOptions& options) {
  const auto group = std::make_shared<Group>(devices, options);
  std::vector<std::unique_ptr<Comm>> comms, host(devices.size());
  if (!group->peers) host = make_thread_comms(static_cast<int>(devices.size()));
  for (size_t rank = 0; rank < devices.size(); ++rank) {
    comms.push_back(std::make_unique<CudaComm>(group, std::move(host[rank]), static_cast<int>(rank)));
  }
  return comms;
}

}  // namespace firstlight
