// SPDX-License-Identifier: Apache-2.0
// Sums between processes' GPUs by NCCL, where their memory cannot be shared, or to be measured beside.
#pragma once
#include <memory>
#include <string_view>

#include "firstlight/comm/cuda_process_comm.h"
#include "firstlight/comm/nccl_api_cuda.h"

namespace firstlight {

/// This process's end; a collective of `processes`. Returns at once: NCCL comes up (0.5 s) on a thread of its own, and
/// the first collective waits for it. Of two ranks the sums are those of rank order to the bit, a + b being b + a; of
/// more they are added in NCCL's order. Nothing tells a GPU that waits for a rank that has failed or hangs: it waits
/// until its process ends (ProcessCommOptions::on_failure). NCCL itself stays up until then, too. `why`: why not
/// otherwise, for path().
std::unique_ptr<CudaProcessComm> make_nccl_comm(ProcessComm& processes, Device device, const cuda::NcclApi& api,
                                                std::string_view why);

}  // namespace firstlight
