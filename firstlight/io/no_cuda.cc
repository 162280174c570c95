// SPDX-License-Identifier: Apache-2.0
// In the place of staging_cuda.cc where the build has no CUDA.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/staging.h"

namespace firstlight {

std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize) {
  throw Error(ErrorKind::unsupported, str(to_string(device), ": this build has no CUDA"));
}

}  // namespace firstlight
