// SPDX-License-Identifier: Apache-2.0
// What stands for the CUDA back end in a build without CUDA.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_ops.h"

namespace firstlight {

std::unique_ptr<Ops> make_cuda_ops(Device device, const CudaOpsOptions&) {
  throw Error(ErrorKind::unsupported, str(to_string(device), ": this program was built without CUDA; use the CPU"));
}

}  // namespace firstlight
