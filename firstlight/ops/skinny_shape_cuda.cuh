// SPDX-License-Identifier: Apache-2.0
// How a skinny product's weights are dealt to blocks.
#pragma once
#include <algorithm>
#include <cstdint>

#include "firstlight/ops/product_cuda.cuh"

namespace firstlight::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Rows of w in a slab so that the GPU's blocks have as many each, all at once if 64 are enough; else in a turn more,
/// where the last is fuller then.
inline int slab_rows_for(int64_t n, int64_t n_slabs_at_once) {
  const int64_t turns = ceil_div(n, 64 * n_slabs_at_once);
  const auto rows = [&](int64_t in) {
    return std::min<int64_t>(64, ceil_div(ceil_div(n, in * n_slabs_at_once), 8) * 8);
  };
  const bool more = turns > 4 && (turns + 1) * rows(turns + 1) < turns * rows(turns);
  return static_cast<int>(rows(more ? turns + 1 : turns));
}

struct SkinnyShape {
  /// Of a tile: two slabs, one, or one whose k two blocks share.
  enum class Kind : uint8_t { pair, single, halves } kind;
  int slab_rows;
  int64_t n_tiles(int64_t w_rows) const { return ceil_div(w_rows, kind == Kind::pair ? 2 * slab_rows : slab_rows); }
};

/// The tile, by w alone: so a row's bits do not depend on the others. Llama-3.1-8B on an H200 at 32 rows, plain reads
/// at 4,640 GB/s: gate_up 55.5 us (four slabs a tile 58.5), head 248 (one slab 252), qkv 15.0 (two blocks a tile 15.3),
/// o and down, whose k two blocks share, 10.6 and 29.1 (one block a tile 14.0 and 38.2, four 18.0 and 43.5).
inline SkinnyShape skinny_shape(Join join, int n, int n_sms) {
  if (join == Join::silu) return {SkinnyShape::Kind::pair, slab_rows_for(n, n_sms)};
  if (n > 64 * n_sms) return {SkinnyShape::Kind::pair, slab_rows_for(n, 2 * n_sms)};
  if (n > 32 * n_sms) return {SkinnyShape::Kind::single, slab_rows_for(n, n_sms)};
  return {SkinnyShape::Kind::halves, slab_rows_for(n, n_sms / 2)};
}

}  // namespace firstlight::cuda
