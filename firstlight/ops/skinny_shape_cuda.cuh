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

/// The tile, by w alone: so a row's bits do not depend on the others. Llama-3.1-8B on an H200 at 32 rows, with the
/// kernels that chose it (today's: docs/performance.md), plain reads at 4,630 GB/s: gate_up 56.2 us (four slabs a tile
/// 56.2 to 57.3, and k shared by two blocks 60), head 245 (four slabs 255), qkv 13.4 (k shared 14.4), o and down, whose
/// k two blocks share, 9.9 and 28.7 (four 19.2 and 42.7: only 30 clusters of four are on the GPU at a time).
inline SkinnyShape skinny_shape(Join join, int n, int n_sms) {
  if (join == Join::silu) return {SkinnyShape::Kind::pair, slab_rows_for(n, n_sms)};
  if (n > 64 * n_sms) return {SkinnyShape::Kind::pair, slab_rows_for(n, 2 * n_sms)};
  if (n > 32 * n_sms) return {SkinnyShape::Kind::single, slab_rows_for(n, n_sms)};
  return {SkinnyShape::Kind::halves, slab_rows_for(n, n_sms / 2)};
}

}  // namespace firstlight::cuda
