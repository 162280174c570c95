// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes of one host, each on a GPU: their sums on the GPUs, by the kernels that ranks of one process
// use, so that the bits are the same.
#pragma once
#include <memory>

#include "firstlight/comm/comm.h"
#include "firstlight/comm/process_comm.h"

namespace firstlight {

/// automatic: ipc if it can be, else nccl, else host.
enum class SumsBy : int {
  automatic,
  ipc,   ///< each process sees the others' memory: "peer access between processes", by the kernels of one process
  nccl,  ///< as the library, opened at run time, sees fit
  host   ///< through host memory, where nothing can be recorded
};

struct CudaProcessCommOptions {
  SumsBy by = SumsBy::automatic;
  bool share_gpu = false;  ///< ipc also where ranks share a GPU, which gives their processes turns of milliseconds
};

/// path() says which way was taken, and why not a better one. A failed group stays failed: reset() does nothing.
class CudaProcessComm : public Comm {
 public:
  /// The good end, before any rank frees what it gave to a collective: blocks until all ranks are here and no process
  /// has another one's memory open. No collective may follow.
  virtual void leave() = 0;
};

/// This process's end, for its GPU. A collective of `processes`, which outlives it and has one thread in its calls or
/// this one's at a time. What a collective was given on any rank stays open in the other processes until leave().
/// Throws Error{unsupported} in a build without CUDA, and where the way that was asked for is none here.
std::unique_ptr<CudaProcessComm> make_cuda_process_comm(ProcessComm& processes, Device device,
                                                        const CudaProcessCommOptions& options = {});

}  // namespace firstlight
