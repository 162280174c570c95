// SPDX-License-Identifier: Apache-2.0
// Which pages a tile of a prompt reads exactly and which as codes, in steps of two. A step is pages 2 j and 2 j + 1 of
// the sequence, wherever the tile begins, and what a row does not see of it has weight 0: so a row's bits do not depend
// on its tile.
#pragma once
#include "firstlight/kv/kv_kind.h"
#include "firstlight/ops/attend_hopper_pages_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kTail = static_cast<int>(kExactTail);

/// Exact pages: the first, and from the first to the last that a row's end lies near, or that all read so.
struct ExactList {
  int lowest, last, tail, n_steps;
  __device__ __forceinline__ explicit ExactList(const TileOnDevice& tile)
      : lowest(max(0, min(tile.position / kPageTokens + 1 - kTail, tile.exact_from))),
        last((tile.position + tile.n_rows - 1) / kPageTokens),
        tail(max(1, lowest / kPages)),
        n_steps(1 + max(0, last / kPages + 1 - tail)) {}
  __device__ __forceinline__ int page(int i) const { return i < kPages ? i : (tail - 1) * kPages + i; }
  __device__ __forceinline__ int fetched(int i) const {
    const int at = page(i);
    return at >= lowest ? min(at, last) : i < kPages ? 0 : lowest;
  }
};

/// Codes, from page 0 on (which none reads so) to the last page that any row does; they follow the exact pages.
struct CodeList {
  int last, n_steps;
  __device__ __forceinline__ explicit CodeList(const TileOnDevice& tile)
      : last(min((tile.position + tile.n_rows - 1) / kPageTokens - kTail, tile.exact_from - 1)),
        n_steps(last < 1 ? 0 : last / kPages + 1) {}
};

/// One of the two, for the same walk: of a kernel with two walks a first pass through the code takes longer.
struct EitherList {
  bool is_codes;
  int first_item, n_steps, tail, last, exact_from;
  __device__ __forceinline__ EitherList(bool is_codes, const TileOnDevice& tile, const ExactList& exact,
                                        const CodeList& codes)
      : is_codes(is_codes),
        first_item(is_codes ? exact.n_steps * kPages : 0),
        n_steps(is_codes ? codes.n_steps : exact.n_steps),
        tail(is_codes ? 1 : exact.tail),
        last(is_codes ? 0x7fffffff / kPageTokens : exact.last),
        exact_from(tile.exact_from) {}
  __device__ __forceinline__ int page(int i) const { return i < kPages ? i : (tail - 1) * kPages + i; }
  __device__ __forceinline__ int visible(int i, int position) const {
    const int at = page(i);
    const bool is_exact = at == 0 || at + kTail > position / kPageTokens || at >= exact_from;
    return is_exact == is_codes ? 0 : is_codes ? kPageTokens : position + 1 - at * kPageTokens;
  }
};

}  // namespace firstlight::cuda
