// SPDX-License-Identifier: Apache-2.0
// What a tile of a prompt's attention reads on Hopper, where that lies in shared memory, and the thread that brings it.
#pragma once
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/wgmma_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kHeads = 2;  // a block's, of one group
inline constexpr int kConsumers = 128, kThreads = kHeads * kConsumers + 128;
// Pages at a time, and whether the two take turns, at 512 rows behind 32,256: 2, in turns 451 us; 2, each as it comes
// 508; 1 481, in turns 499; behind 7,680: 114.0, 122.6, 114.2, 115.8. With q in shared memory 457 and 467 us (2 pages).
inline constexpr int kPages = 2;
inline constexpr int kPageBytes = kPageTokens * 128,
                     kBoxBytes = kPages * kPageBytes;  // of 64 numbers of keys or values
static_assert(kTileRows == 64 && kPageTokens == 64);

/// Pages in memory, for the kernel.
struct MappedPages {
  CUtensorMap map;         ///< rows of head_dim numbers
  const int32_t* numbers;  ///< the pass's table
  int rows;                ///< from page to page
};

/// Blocks for a group's heads.
inline int pairs_of(const AttendParams& p) { return ceil_div(p.n_heads / p.kv.n_kv_heads, kHeads); }

struct HopperParams {
  MappedPages pages;
  AttendParams attend;
  const TileOnDevice* tiles;
  int head_pairs;  ///< of a group
};

/// Groups of pages: [keys, values][64 numbers of each][page].
template <int kDim>
struct Ring {
  static constexpr int kBytes = kPageTokens * kDim * 2;  ///< keys or values of a page
  static constexpr int kStages = kDim == 128 ? 6 : 8;    ///< pages
  static_assert(kStages % kPages == 0);
  MemoryBarrier keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
  /// One thread's, before all others'.
  __device__ void init() {
    for (int s = 0; s < kStages; ++s) {
      keys_full[s].init(1);
      values_full[s].init(1);
      keys_empty[s].init(kHeads * 4);
      values_empty[s].init(kHeads * 4);
    }
  }
};

/// Where an item of the walk lies in the ring.
template <int kDim>
struct Place {
  int stage;
  unsigned parity;
  __device__ __forceinline__ explicit Place(int item)
      : stage(item % Ring<kDim>::kStages), parity(static_cast<unsigned>(item / Ring<kDim>::kStages) & 1) {}
  __device__ __forceinline__ uint32_t keys(uint32_t pages) const {
    return pages +
           static_cast<uint32_t>(stage / kPages * kPages * 2 * Ring<kDim>::kBytes + stage % kPages * kPageBytes);
  }
  __device__ __forceinline__ uint32_t values(uint32_t pages) const { return keys(pages) + kPages * Ring<kDim>::kBytes; }
};

/// What a tile reads, in order, two pages a step.
struct PageList {
  static constexpr int first_item = 0;  ///< of the ring
  int last, n_steps;
  __device__ __forceinline__ explicit PageList(const TileOnDevice& tile)
      : last((tile.position + tile.n_rows - 1) / kPageTokens), n_steps(last / kPages + 1) {}
  __device__ __forceinline__ static int page(int i) { return i; }
  /// Keys of page(i), from its first on, that the row at `position` reads; any number from 64 on is all.
  __device__ __forceinline__ static int visible(int i, int position) { return position + 1 - i * kPageTokens; }
};

/// One thread: the keys that lie from `row` on in the map, and the values `to_values` rows behind them, when their
/// place in the ring is free.
template <int kDim>
__device__ __forceinline__ void fetch_page(const CUtensorMap& map, int row, int to_values, int item, uint32_t pages,
                                           Ring<kDim>& ring) {
  const Place<kDim> place(item);
  if (item >= Ring<kDim>::kStages) ring.keys_empty[place.stage].wait(place.parity ^ 1);
  ring.keys_full[place.stage].arrive_and_expect(Ring<kDim>::kBytes);
#pragma unroll
  for (int i = 0; i < kDim / 64; ++i)
    copy_box(place.keys(pages) + i * kBoxBytes, map, i * 64, row, ring.keys_full[place.stage]);
  if (item >= Ring<kDim>::kStages) ring.values_empty[place.stage].wait(place.parity ^ 1);
  ring.values_full[place.stage].arrive_and_expect(Ring<kDim>::kBytes);
#pragma unroll
  for (int i = 0; i < kDim / 64; ++i)
    copy_box(place.values(pages) + i * kBoxBytes, map, i * 64, row + to_values, ring.values_full[place.stage]);
}

/// One thread: keys and values of a key/value head of all pages, in order, and the last again where a step lacks one.
template <int kDim>
__device__ __forceinline__ void fetch_pages(const HopperParams& params, const TileOnDevice& tile, int kv_head,
                                            const PageList& list, uint32_t pages, Ring<kDim>& ring) {
  const auto number_of = [&](int item) { return params.pages.numbers[tile.pages + min(item, list.last)]; };
  int number = number_of(0);
  for (int item = 0; item < list.n_steps * kPages; ++item) {
    const int row = number * params.pages.rows + kv_head * kPageTokens;
    number = number_of(item + 1);
    fetch_page(params.pages.map, row, params.attend.kv.n_kv_heads * kPageTokens, item, pages, ring);
  }
}

}  // namespace firstlight::cuda
