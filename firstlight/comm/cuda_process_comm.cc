// SPDX-License-Identifier: Apache-2.0
// Collectives between GPUs of one process each. As in cuda_comm.cu the host meets before a collective is queued and
// again when all have queued it. A GPU that waits for another one's looks at a word in the memory that the processes
// share: a rank that fails, or whose process is gone, is told there by whoever notices.
#include "firstlight/comm/cuda_process_comm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/ipc_memory_cuda.h"
#include "firstlight/comm/nccl_comm_cuda.h"
#include "firstlight/comm/peer_queue_cuda.h"
#include "firstlight/comm/through_host_cuda.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"
#include "firstlight/device/gpus.h"

namespace firstlight {
namespace {

using peer::Call;
using Why = std::array<char, 256>;  // a text that ends with a zero; "" is a yes

Why why_of(std::string_view text) {
  Why why{};
  std::copy_n(text.data(), std::min(text.size(), why.size() - 1), why.data());
  return why;
}

/// What a rank says of itself first.
struct Hello {
  Why why{};  ///< it cannot be a peer
  GpuUuid gpu{};
  cuda::ExportedMemory memory;  ///< its inbox, and its signals behind
};

/// What a rank brings to a collective.
struct Post {
  uint64_t n = 0, alignment = 0;
  cuda::ExportedMemory memory;  ///< where it is read and written in place
};

template <class T>
std::vector<T> tell_all(ProcessComm& processes, const T& mine) {
  std::vector<T> all(static_cast<size_t>(processes.size()));
  processes.exchange(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

/// The GPU's index in this process, or −1: it is hidden from it.
int index_of(const GpuUuid& gpu) {
  for (size_t i = 0; i < gpus().names.size(); ++i) {
    const Device device{Device::Kind::cuda, static_cast<int>(i)};
    if (gpu_uuid(device) == gpu) return device.index;
  }
  return -1;
}

/// The first reason that a rank has, the same on all of them; "" if none has one.
std::string first_why(ProcessComm& processes, std::string_view mine) {
  for (const Why& each : tell_all(processes, why_of(mine))) {
    if (each[0] != '\0') return each.data();
  }
  return "";
}

/// Sums by kernels that read and write all ranks' memory.
class IpcComm final : public CudaProcessComm {
 public:
  IpcComm(ProcessComm& processes, Device device) : host_(processes), device_(device) {
    cuda::use(device_);
    const std::vector<Hello> all = tell_all(host_, introduce());
    for (const Hello& each : all) {
      if (why_not_.empty()) why_not_ = each.why.data();
    }
    if (why_not_.empty()) why_not_ = first_why(host_, open(all));
  }
  ~IpcComm() override { wait_for_device(); }

  /// "" if it can be used: on all ranks, or on none.
  const std::string& why_not() const { return why_not_; }
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string_view path() const override { return "peer access between processes"; }
  bool recordable() const override { return true; }
  int least(int mine) override { return host_.least(mine); }
  void fail(std::exception_ptr cause) override { host_.fail(cause); }
  void reset() override {}
  void check() override;
  void all_reduce_sum(std::span<float> data, const Stream& stream) override;
  void leave() override;

 private:
  Hello introduce();
  std::string open(std::span<const Hello> all);
  Call meet(float* data, size_t n, bool in_place);
  void wait_for_device() noexcept;

  ProcessComm& host_;
  const Device device_;
  std::string why_not_;
  Buffer memory_;  // the inbox, the signals behind
  cuda::RegisteredMemory stop_;
  cuda::ImportedMemory theirs_;  // closed before memory_ is freed
  Call call_;                    // what is the same in all collectives
};

Hello IpcComm::introduce() {
  Hello mine;
  mine.gpu = gpu_uuid(device_);
  try {
    if (size() > peer::kMaxRanks)
      throw Error(ErrorKind::unsupported, str(size(), " ranks; peers are at most ", peer::kMaxRanks));
    const uint64_t inbox = peer::inbox_bytes(size());
    memory_ = Buffer(device_, inbox + sizeof(peer::Signals));
    clear(memory_.data() + inbox, device_, sizeof(peer::Signals));
    cuda::check(cudaMemsetAsync(memory_.data(), 0xff, inbox, cudaStreamPerThread), "empty an inbox");
    cuda::check(cudaStreamSynchronize(cudaStreamPerThread), "empty an inbox");
    peer::load_kernels();
    stop_.add(host_.stop_page());
    mine.memory = cuda::export_memory(memory_.data());
  } catch (const Error& e) {
    mine.why = why_of(str("rank ", rank(), ": ", e.what()));
  }
  return mine;
}

/// "", or why this rank cannot.
std::string IpcComm::open(std::span<const Hello> all) {
  try {
    call_.rank = rank();
    call_.size = size();
    call_.stop = stop_.on_gpu(host_.stop_word());
    for (size_t r = 0; r < all.size(); ++r) {
      const bool own = static_cast<int>(r) == rank();
      const int index = index_of(all[r].gpu);  // memory of a GPU that is hidden from this process opens, too
      int can = index < 0 || index == device_.index ? 1 : 0;
      if (can == 0) cuda::check(cudaDeviceCanAccessPeer(&can, device_.index, index), "ask for peer access");
      if (can == 0) return str("rank ", rank(), "'s GPU cannot reach the memory of rank ", r, "'s");
      std::byte* const at = own ? memory_.data() : theirs_.at(all[r].memory);
      call_.inbox[r] = reinterpret_cast<peer::Words*>(at);
      call_.signals[r] = reinterpret_cast<peer::Signals*>(at + peer::inbox_bytes(size()));
    }
  } catch (const Error& e) {
    return str("rank ", rank(), ": ", e.what());
  }
  return "";
}

void IpcComm::check() {
  host_.check();
  if (*const_cast<volatile uint32_t*>(host_.stop_word()) == 0) return;
  fail(std::make_exception_ptr(
      Error(ErrorKind::device, str("a collective of rank ", rank(), " waited 10 s and more for another rank's GPU"))));
  host_.check();
}

void IpcComm::wait_for_device() noexcept {
  if (cudaSetDevice(device_.index) == cudaSuccess) cudaDeviceSynchronize();  // fails where a pass has failed: known
  cudaGetLastError();
}

void IpcComm::leave() {
  wait_for_device();
  theirs_.close();
  host_.barrier();
}

/// All ranks are here, with as many floats; where each has them, if they are used in place.
Call IpcComm::meet(float* data, size_t n, bool in_place) {
  cuda::use(device_);
  Post mine{n, reinterpret_cast<uintptr_t>(data) % 16, {}};
  if (in_place) mine.memory = cuda::export_memory(data);
  const std::vector<Post> all = tell_all(host_, mine);
  Call call = call_;
  call.n = static_cast<int64_t>(n);
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].n != n || all[r].alignment != 0) {
      fail(std::make_exception_ptr(
          Error(ErrorKind::bug, str("collective: rank ", r, " has ", all[r].n, " floats at 16 k + ", all[r].alignment,
                                    ", rank ", rank(), " has ", n, "; expected as many at multiples of 16 bytes"))));
      host_.check();
    }
    if (static_cast<int>(r) == rank()) {
      call.data[r] = data;
    } else if (in_place) {
      call.data[r] = reinterpret_cast<float*>(theirs_.at(all[r].memory));
    }
  }
  return call;
}

void IpcComm::all_reduce_sum(std::span<float> data, const Stream& stream) {
  const bool in_place = peer::is_in_place(static_cast<int64_t>(data.size()), size());
  peer::queue_sum(meet(data.data(), data.size(), in_place), static_cast<cudaStream_t>(stream.handle()));
  host_.barrier();
}

/// Sums by the processes' ends on the CPU.
class HostComm final : public CudaProcessComm {
 public:
  HostComm(ProcessComm& processes, Device device, std::string_view why)
      : host_(processes), device_(device), path_(str("host memory (", why, ")")) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string_view path() const override { return path_; }
  int least(int mine) override { return host_.least(mine); }
  void check() override { host_.check(); }
  void fail(std::exception_ptr cause) override { host_.fail(cause); }
  void reset() override {}
  void leave() override { host_.barrier(); }
  void all_reduce_sum(std::span<float> data, const Stream& stream) override {
    through_host_.all_reduce_sum(host_, device_, data, stream);
  }

 private:
  ProcessComm& host_;
  const Device device_;
  const std::string path_;
  ThroughHost through_host_;
};

std::string why_shared(ProcessComm& processes, Device device) {
  const std::vector<GpuUuid> all = tell_all(processes, gpu_uuid(device));
  for (size_t i = 0; i < all.size(); ++i) {
    const auto first = static_cast<size_t>(std::find(all.begin(), all.end(), all[i]) - all.begin());
    if (first != i) return str("ranks ", first, " and ", i, " share a GPU");
  }
  return "";
}

/// Null if NCCL cannot be used, and why not.
std::unique_ptr<CudaProcessComm> nccl_comm(ProcessComm& processes, Device device, std::string_view why,
                                           std::string& why_not) {
  cuda::NcclApi api;
  try {
    api = cuda::NcclApi::open();
  } catch (const Error& e) {
    why_not = str("rank ", processes.rank(), ": ", e.what());
  }
  why_not = first_why(processes, why_not);
  return why_not.empty() ? make_nccl_comm(processes, device, api, why) : nullptr;
}

}  // namespace

std::unique_ptr<CudaProcessComm> make_cuda_process_comm(ProcessComm& processes, Device device,
                                                        const CudaProcessCommOptions& options) {
  const auto asked_for = [&](SumsBy by) { return options.by == by || options.by == SumsBy::automatic; };
  if (options.by == SumsBy::host) return std::make_unique<HostComm>(processes, device, "as asked");
  std::string why = options.share_gpu ? "" : why_shared(processes, device);
  if (why.empty() && asked_for(SumsBy::ipc)) {
    auto ipc = std::make_unique<IpcComm>(processes, device);
    why = ipc->why_not();
    if (why.empty()) return ipc;
    ipc->leave();
    if (options.by == SumsBy::automatic) {
      std::string why_no_nccl;
      if (auto nccl = nccl_comm(processes, device, why, why_no_nccl)) return nccl;
      why += str("; no NCCL: ", why_no_nccl);
    }
  } else if (why.empty()) {
    if (auto nccl = nccl_comm(processes, device, "as asked", why)) return nccl;
  }
  if (options.by == SumsBy::automatic) return std::make_unique<HostComm>(processes, device, why);
  throw Error(ErrorKind::unsupported,
              str("sums between processes by ", options.by == SumsBy::ipc ? "CUDA IPC" : "NCCL", ": ", why));
}

}  // namespace firstlight
