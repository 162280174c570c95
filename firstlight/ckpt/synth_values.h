// SPDX-License-Identifier: Apache-2.0
// The values of synthetic weights: each element is a function of seed, tensor and index, so any thread can make any
// piece.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "firstlight/base/dtype.h"

namespace firstlight {

/// Where the counters of a model's tensor number `index` (of model_tensors()) start.
uint64_t synth_stream(uint64_t seed, uint64_t index);

/// Elements [begin, begin + n) of the tensor `name`: ones in a norm's weight, else normally distributed, with standard
/// deviation 0.02 (bf16) or 16 (f8_e4m3, whose range is 448: such a checkpoint would carry scales). `out`: aligned for
/// `dtype`. Other types: Error{unsupported}.
void fill_synth(std::string_view name, DType dtype, uint64_t stream, uint64_t begin, uint64_t n, std::byte* out);

}  // namespace firstlight
