// SPDX-License-Identifier: Apache-2.0
// In the place of cuda_comm.cu where the build has no CUDA.
#include "firstlight/base/error.h"
#include "firstlight/comm/comm.h"
#include "firstlight/comm/cuda_process_comm.h"

namespace firstlight {

std::vector<std::unique_ptr<Comm>> make_cuda_comms(std::span<const Device>, const CudaCommOptions&) {
  throw Error(ErrorKind::unsupported, "ranks on GPUs: this program was built without CUDA");
}

std::unique_ptr<CudaProcessComm> make_cuda_process_comm(ProcessComm&, Device, const CudaProcessCommOptions&) {
  throw Error(ErrorKind::unsupported, "ranks on GPUs: this program was built without CUDA");
}

}  // namespace firstlight
