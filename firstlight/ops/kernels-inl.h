// SPDX-License-Identifier: Apache-2.0
// All kernels in one instruction set, and their table. The file that includes this has set FIRSTLIGHT_SIMD (namespace),
// _LANES, _TILE_VECTORS and _BF16_DOT, included kernels-deps.h, and opened its target region.
#pragma once

// Each builds on those above it.
// clang-format off
#include "firstlight/ops/simd-inl.h"
#include "firstlight/ops/matvec-inl.h"
#include "firstlight/ops/tile-inl.h"
#include "firstlight/ops/matmul-inl.h"
#include "firstlight/ops/attention-inl.h"
#include "firstlight/ops/attention_row-inl.h"
#include "firstlight/ops/codes-inl.h"
#include "firstlight/ops/codes_row-inl.h"
#include "firstlight/ops/codes_block-inl.h"
#include "firstlight/ops/rows-inl.h"
// clang-format on

namespace firstlight::FIRSTLIGHT_SIMD {

constexpr CpuKernels table(std::string_view name) {
  return {.name = name,
          .matvec = matvec,
          .packed_bytes = packed_bytes,
          .matmul_scratch_bytes = matmul_scratch_bytes,
          .pack = pack,
          .matmul = matmul,
          .attend_scratch_bytes = attend_scratch_bytes,
          .attend_block = attend_any_block,
          .attend_row = attend_any_row,
          .code_products = code_products,
          .merge_parts = merge_parts,
          .rms_norm = rms_norm,
          .rope_and_store = rope_and_store,
          .widen = widen,
          .add = add};
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
