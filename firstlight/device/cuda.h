// SPDX-License-Identifier: Apache-2.0
// CUDA's return codes as errors. Only for files that may see CUDA's headers.
#pragma once
#include <cuda_runtime_api.h>

#include <source_location>
#include <string_view>

#include "firstlight/device/device.h"

namespace firstlight::cuda {

/// Throws Error{device} (Error{out_of_memory} for that code) with CUDA's name and words for `code` unless it is
/// success. `what` says what was tried: "copy 16777216 bytes to cuda:0". Clears the runtime's last error.
void check(cudaError_t code, std::string_view what = {}, std::source_location where = std::source_location::current());

/// Makes `device` (of kind cuda) the calling thread's; its context is created on first use.
void use(Device device);

}  // namespace firstlight::cuda
