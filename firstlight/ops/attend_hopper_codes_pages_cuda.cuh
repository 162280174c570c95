// SPDX-License-Identifier: Apache-2.0
// Which pages a tile of a prompt reads as codes and which exactly, in steps of two. A step is pages 2 j and 2 j + 1 of
// the sequence, wherever the tile begins, and what a row does not see of it has weight 0: so a row's bits do not depend
// on its tile.
#pragma once
#include "firstlight/kv/kv_kind.h"
#include "firstlight/ops/attend_hopper_pages_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kTail = static_cast<int>(kExactTail);

/// Codes, from page 0 on (which none reads so) to the last page that any row does.
struct CodeList {
  static constexpr bool kIsCodes = true;
  static constexpr int first_item = 0;
  int last, n_steps;
  __device__ __forceinline__ explicit CodeList(const TileOnDevice& tile)
      : last((tile.position + tile.n_rows - 1) / kPageTokens - kTail), n_steps(last < 1 ? 0 : last / kPages + 1) {}
  __device__ __forceinline__ static int page(int i) { return i; }
  /// Whose codes stand where page(i) is read by none: any numbers would do.
  __device__ __forceinline__ int fetched(int i) const { return min(max(i, 1), last); }
  __device__ __forceinline__ static int visible(int i, int position) {
    return i > 0 && i + kTail <= position / kPageTokens ? kPageTokens : 0;
  }
};

/// Exact pages: the first, and from the first to the last that a row's end lies near.
struct ExactList {
  static constexpr bool kIsCodes = false;
  int first_item, lowest, last, tail, n_steps;
  __device__ __forceinline__ ExactList(const TileOnDevice& tile, int items_before)
      : first_item(items_before),
        lowest(max(0, tile.position / kPageTokens + 1 - kTail)),
        last((tile.position + tile.n_rows - 1) / kPageTokens),
        tail(max(1, lowest / kPages)),
        n_steps(1 + max(0, last / kPages + 1 - tail)) {}
  __device__ __forceinline__ int page(int i) const { return i < kPages ? i : (tail - 1) * kPages + i; }
  __device__ __forceinline__ int fetched(int i) const {
    const int at = page(i);
    return at >= lowest ? min(at, last) : i < kPages ? 0 : lowest;
  }
  __device__ __forceinline__ int visible(int i, int position) const {
    const int at = page(i);
    return at == 0 || at + kTail > position / kPageTokens ? position + 1 - at * kPageTokens : 0;
  }
};

}  // namespace firstlight::cuda
