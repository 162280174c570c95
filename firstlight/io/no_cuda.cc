// SPDX-License-Identifier: Apache-2.0
// In the place of staging_cuda.cc and leaf_hasher_cuda.cu where the build has no CUDA.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/leaf_hasher.h"
#include "firstlight/io/staging.h"

namespace firstlight {

namespace {

[[noreturn]] void without_cuda(Device device) {
  throw Error(ErrorKind::unsupported, str(to_string(device), ": this build has no CUDA"));
}

}  // namespace

std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize) { without_cuda(device); }
std::unique_ptr<LeafHasher> make_cuda_leaf_hasher(Device device) { without_cuda(device); }

}  // namespace firstlight
