// SPDX-License-Identifier: Apache-2.0
// What tensor-parallel ranks say to each other. Ranks are threads of one process, on the CPU or on a GPU each; or
// processes, process_comm.h.
#pragma once
#include <exception>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "firstlight/device/device.h"
#include "firstlight/device/stream.h"

namespace firstlight {

/// One rank's end. All ranks call the same sequence of collectives. When a rank fails (fail()), every call on every
/// rank throws its cause.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// How bytes travel, in words: "one rank", "threads", "peer access", "host memory (why)".
  virtual std::string_view path() const = 0;

  /// data[i] = Σ over ranks of data[i], added in rank order: the same bits on every rank and every run. On the CPU done
  /// on return. On a GPU `data` is its memory, aligned to 16 bytes, and the call is queued on `stream`: it returns when
  /// all ranks have queued it, before it is done.
  virtual void all_reduce_sum(std::span<float> data, const Stream& stream) = 0;
  /// Whether collectives may be recorded with the stream they are queued on, and replayed on all ranks.
  virtual bool recordable() const { return false; }

  /// Blocks until all ranks' threads are here (not what they have queued); the least of their numbers.
  virtual int least(int mine) = 0;
  void barrier() { least(0); }
  /// Throws the cause if a rank has failed. What a stream has brought is worth something only if this returns after it.
  virtual void check() = 0;
  /// Ends all ranks' calls with this cause, and what waits on their devices; the first cause stays.
  virtual void fail(std::exception_ptr cause) = 0;
  /// After a failure, when no rank is in a call: waits until the devices are done, and makes the whole group new. By
  /// one of its ends. Throws Error{device} where a device is lost; the group then stays failed.
  virtual void reset() = 0;
};

/// [n] ends of one group of threads; barriers block in the kernel (never spin: ranks may outnumber cores).
std::vector<std::unique_ptr<Comm>> make_thread_comms(int n);

struct CudaCommOptions {
  bool peer_access = true;  ///< false: through host memory although the GPUs could do without
  int spin = 0;             ///< polls of a rank's thread before it sleeps where ranks meet
};

/// An end for each GPU of `devices`, rank 0 first. Over peer access, in kernels of their own: no library, nothing to
/// start up. Without (path() says why: two ranks on one GPU, no way between two GPUs, more than 8 ranks) through pinned
/// host memory, where every call waits for the stream. Throws Error{unsupported} in a build without CUDA.
std::vector<std::unique_ptr<Comm>> make_cuda_comms(std::span<const Device> devices,
                                                   const CudaCommOptions& options = {});

/// By where the ranks are: GPUs all, or the CPU all; Error{bug} for both.
std::vector<std::unique_ptr<Comm>> make_comms(std::span<const Device> devices);

}  // namespace firstlight
