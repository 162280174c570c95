// SPDX-License-Identifier: Apache-2.0
// In the place of leaf_hasher_cuda.cu where the build has no CUDA.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/leaf_hasher.h"

namespace firstlight {

std::unique_ptr<LeafHasher> make_cuda_leaf_hasher(Device device) {
  throw Error(ErrorKind::unsupported, str(to_string(device), ": this build has no CUDA"));
}

}  // namespace firstlight
