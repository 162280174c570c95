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
#include "firstlight/comm/peer_cuda.cuh"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"

namespace firstlight {
namespace {

using cuda::check;
using peer::Call;

__global__ void sum_by_inbox_kernel(const __grid_constant__ Call call) {
  peer::enter();
  sum_by_inbox(peer::OnGpu{}, call);
}
template <int kMost>
__global__ void __launch_bounds__(256) sum_in_place_kernel(const __grid_constant__ Call call) {
  peer::enter();
  peer::sum_in_place<kMost>(peer::OnGpu{}, call);
}
__global__ void gather_kernel(const __grid_constant__ Call call) {
  peer::enter();
  gather(peer::OnGpu{}, call);
}

/// Pinned host memory that every GPU sees.
class Pinned {
 public:
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data_); }
  /// Waits for `stream` before it moves.
  void reserve(size_t bytes, const Stream& stream) {
    if (bytes <= bytes_) return;
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle())), "wait before pinned memory grows");
    check(cudaFreeHost(data_), "free pinned memory");
    data_ = nullptr;
    bytes_ = 0;
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocPortable | cudaHostAllocMapped),
          str("allocate ", bytes, " bytes of pinned memory"));
    bytes_ = bytes;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

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

/// The kernels' code is brought to the current GPU now, not in a pass.
void load_kernels() {
  cudaFuncAttributes attributes{};
  for (void (*kernel)(Call) : {&sum_by_inbox_kernel, &gather_kernel, &sum_in_place_kernel<2>, &sum_in_place_kernel<4>,
                               &sum_in_place_kernel<8>}) {
    check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "load a collective's kernel");
  }
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
      const size_t inbox_bytes = 2 * devices.size() *
                                 static_cast<size_t>(peer::place_floats(static_cast<int>(devices.size()))) *
                                 sizeof(float);
      for (const Device device : devices) {
        inboxes.emplace_back(device, inbox_bytes);
        signals.emplace_back(device, sizeof(peer::Signals));
        load_kernels();
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
  void all_gather(std::span<const float> mine, std::span<float> out, const Stream& stream) override;

 private:
  Call meet(void* data, size_t n);
  void launch(void (*kernel)(Call), const Call& call, int64_t n_items, int n_threads, const Stream& stream);
  void fetch(std::span<const float> data, float* to, const Stream& stream);

  std::shared_ptr<Group> group_;
  std::unique_ptr<Comm> host_;
  const int rank_;
  const Device device_;
  Pinned mine_, all_;
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

/// Blocks and threads are the same on all ranks: a block waits for its like.
void CudaComm::launch(void (*kernel)(Call), const Call& call, int64_t n_items, int n_threads, const Stream& stream) {
  if (n_items > 0) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(std::clamp<int64_t>((n_items + n_threads - 1) / n_threads, 1, peer::kMaxBlocks)));
    config.blockDim = dim3(static_cast<unsigned>(n_threads));
    config.stream = static_cast<cudaStream_t>(stream.handle());
    config.attrs = &attribute;
    config.numAttrs = 1;
    cuda::check(cudaLaunchKernelEx(&config, kernel, call), "queue a collective");
  }
  group_->meeting.barrier();
}

void CudaComm::all_reduce_sum(std::span<float> data, const Stream& stream) {
  if (size() == 1) return check();
  if (!group_->peers) {
    cuda::use(device_);
    mine_.reserve(data.size_bytes(), stream);
    fetch(data, mine_.as<float>(), stream);
    host_->all_reduce_sum({mine_.as<float>(), data.size()}, {});
    return cuda::check(cudaMemcpyAsync(data.data(), mine_.as<float>(), data.size_bytes(), cudaMemcpyHostToDevice,
                                       static_cast<cudaStream_t>(stream.handle())),
                       "send a sum");
  }
  const Call call = meet(data.data(), data.size());
  const int64_t n_vectors = (call.n + 3) / 4;
  if (call.n <= peer::place_floats(size())) {
    int n_threads = 128;  // the fewest with a vector each: 1 row of 4096 2.59 us, with 256 2.65; 32 rows 4.05
    while (n_threads < 1024 && n_vectors > int64_t{peer::kMaxBlocks} * n_threads) n_threads *= 2;
    return launch(&sum_by_inbox_kernel, call, n_vectors, n_threads, stream);
  }
  constexpr int kThreads = 256;  // 2048 rows 106.7 us; with 128 108.1
  launch(size() == 2   ? &sum_in_place_kernel<2>
         : size() <= 4 ? &sum_in_place_kernel<4>
                       : &sum_in_place_kernel<8>,
         call, (n_vectors + size() - 1) / size(), kThreads, stream);
}

void CudaComm::all_gather(std::span<const float> mine, std::span<float> out, const Stream& stream) {
  if (out.size() != mine.size() * static_cast<size_t>(size())) {
    throw Error(ErrorKind::bug, str("all_gather: ", size(), " pieces of ", mine.size(), " floats into ", out.size()));
  }
  const auto queue = static_cast<cudaStream_t>(stream.handle());
  if (size() == 1) {
    check();
    cuda::use(device_);
    return cuda::check(cudaMemcpyAsync(out.data(), mine.data(), mine.size_bytes(), cudaMemcpyDeviceToDevice, queue),
                       "gather from one rank");
  }
  if (!group_->peers) {
    cuda::use(device_);
    mine_.reserve(mine.size_bytes(), stream);
    all_.reserve(out.size_bytes(), stream);
    fetch(mine, mine_.as<float>(), stream);
    host_->all_gather({mine_.as<float>(), mine.size()}, {all_.as<float>(), out.size()}, {});
    return cuda::check(cudaMemcpyAsync(out.data(), all_.as<float>(), out.size_bytes(), cudaMemcpyHostToDevice, queue),
                       "send what was gathered");
  }
  Call call = meet(out.data(), mine.size());
  call.mine = mine.data();
  launch(&gather_kernel, call, call.n, 256, stream);
}

/// Waits for the stream.
void CudaComm::fetch(std::span<const float> data, float* to, const Stream& stream) {
  const auto queue = static_cast<cudaStream_t>(stream.handle());
  cuda::check(cudaMemcpyAsync(to, data.data(), data.size_bytes(), cudaMemcpyDeviceToHost, queue),
              "fetch a part of a sum");
  cuda::check(cudaStreamSynchronize(queue), "wait for a part of a sum");
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
