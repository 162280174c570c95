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

class IpcComm final : public CudaProcessComm {
 public:
  IpcComm(ProcessComm& processes, Device device, const CudaProcessCommOptions& options)
      : host_(processes), device_(device) {
    cuda::use(device_);
    const Hello mine = introduce(options);
    const std::vector<Hello> all = tell_all(host_, mine);
    std::string why = why_not_peers(all, options);
    if (why.empty()) {  // all ranks agree so far
      for (const Why& theirs : tell_all(host_, open(all))) {
        if (why.empty()) why = theirs.data();
      }
    }
    peers_ = why.empty();
    path_ = peers_ ? "peer access between processes" : str("host memory (", why, ")");
  }
  ~IpcComm() override { wait_for_device(); }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string_view path() const override { return path_; }
  bool recordable() const override { return peers_; }
  int least(int mine) override { return host_.least(mine); }
  void fail(std::exception_ptr cause) override { host_.fail(cause); }
  void reset() override {}
  void check() override;
  void all_reduce_sum(std::span<float> data, const Stream& stream) override;
  void all_gather(std::span<const float> mine, std::span<float> out, const Stream& stream) override;
  void leave() override;

 private:
  Hello introduce(const CudaProcessCommOptions& options);
  std::string why_not_peers(std::span<const Hello> all, const CudaProcessCommOptions& options) const;
  Why open(std::span<const Hello> all);
  Call meet(float* data, size_t n, bool in_place);
  void wait_for_device() noexcept;

  ProcessComm& host_;
  const Device device_;
  bool peers_ = false;
  std::string path_;
  Buffer memory_;  // the inbox, the signals behind
  cuda::RegisteredMemory stop_;
  cuda::ImportedMemory theirs_;  // closed before memory_ is freed
  Call call_;                    // what is the same in all of them
  ThroughHost through_host_;
};

Hello IpcComm::introduce(const CudaProcessCommOptions& options) {
  Hello mine;
  mine.gpu = gpu_uuid(device_);
  try {
    if (!options.ipc) throw Error(ErrorKind::unsupported, "as asked");
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
    mine.why = why_of(e.what());
  }
  return mine;
}

/// The same on all ranks, but for what this process can see of the others' GPUs.
std::string IpcComm::why_not_peers(std::span<const Hello> all, const CudaProcessCommOptions& options) const {
  for (const Hello& each : all) {
    if (each.why[0] != '\0') return each.why.data();
  }
  for (size_t i = 0; i < all.size() && !options.share_gpu; ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (all[i].gpu == all[j].gpu) return str("ranks ", j, " and ", i, " share a GPU");
    }
  }
  return "";
}

Why IpcComm::open(std::span<const Hello> all) {
  try {
    call_.rank = rank();
    call_.size = size();
    call_.stop = stop_.on_gpu(host_.stop_word());
    for (size_t r = 0; r < all.size(); ++r) {
      const bool own = static_cast<int>(r) == rank();
      const int index = index_of(all[r].gpu);
      if (index < 0)
        return why_of(str("the GPU of rank ", r, " is hidden from rank ", rank(), ": CUDA_VISIBLE_DEVICES is to have "
                          "the GPUs of all ranks"));
      int can = index == device_.index ? 1 : 0;
      if (can == 0) cuda::check(cudaDeviceCanAccessPeer(&can, device_.index, index), "ask for peer access");
      if (can == 0) return why_of(str("rank ", rank(), "'s GPU cannot reach the memory of rank ", r, "'s"));
      std::byte* const at = own ? memory_.data() : theirs_.at(all[r].memory);
      call_.inbox[r] = reinterpret_cast<peer::Words*>(at);
      call_.signals[r] = reinterpret_cast<peer::Signals*>(at + peer::inbox_bytes(size()));
    }
  } catch (const Error& e) {
    return why_of(str("rank ", rank(), ": ", e.what()));
  }
  return {};
}

void IpcComm::check() {
  host_.check();
  if (!peers_ || *const_cast<volatile uint32_t*>(host_.stop_word()) == 0) return;
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
  peers_ = false;
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
      fail(std::make_exception_ptr(Error(
          ErrorKind::bug, str("collective: rank ", r, " has ", all[r].n, " floats at 16 k + ", all[r].alignment,
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
  if (!peers_) return through_host_.all_reduce_sum(host_, device_, data, stream);
  const bool in_place = peer::is_in_place(static_cast<int64_t>(data.size()), size());
  peer::queue_sum(meet(data.data(), data.size(), in_place), static_cast<cudaStream_t>(stream.handle()));
  host_.barrier();
}

void IpcComm::all_gather(std::span<const float> mine, std::span<float> out, const Stream& stream) {
  if (out.size() != mine.size() * static_cast<size_t>(size())) {
    throw Error(ErrorKind::bug, str("all_gather: ", size(), " pieces of ", mine.size(), " floats into ", out.size()));
  }
  if (!peers_) return through_host_.all_gather(host_, device_, mine, out, stream);
  Call call = meet(out.data(), mine.size(), /*in_place=*/true);
  call.mine = mine.data();
  peer::queue_gather(call, static_cast<cudaStream_t>(stream.handle()));
  host_.barrier();
}

}  // namespace

std::unique_ptr<CudaProcessComm> make_cuda_process_comm(ProcessComm& processes, Device device,
                                                        const CudaProcessCommOptions& options) {
  return std::make_unique<IpcComm>(processes, device, options);
}

}  // namespace firstlight
