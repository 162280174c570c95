// SPDX-License-Identifier: Apache-2.0
// How single rows over codes are cut into parts, one a block at a time, and what a block knows of its parts. A row's
// bits depend on its own length and its number of parts; the number follows from how much the whole batch has to read.
#pragma once
#include <cstddef>

#include "firstlight/ops/attend_chunks_cuda.cuh"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

/// Pages that come in one copy; larger ones come as two: keys, then values and all scales. 32 x 32,768 keys at 4 bits,
/// copies alone: 265 us in halves, 249 whole (these without the exact pages, 3 % of the bytes).
__host__ __device__ constexpr bool comes_whole(const tq::PageShape& shape) { return shape.bytes() <= 8448; }
/// Bytes of a slot of the ring.
__host__ __device__ constexpr int ring_pitch(const tq::PageShape& shape) {
  const int keys = shape.values_at(), rest = shape.bytes() - keys;
  return comes_whole(shape) ? shape.bytes() : keys > rest ? keys : rest;
}
/// Blocks of a multiprocessor: one begins or ends parts while the other reads. 32 x 512 keys take 18.0 us instead of
/// 24.1; with two sets of heads a group there is no room for their sums.
__host__ __device__ constexpr int code_blocks(int n_sets) { return n_sets == 1 ? 2 : 1; }
/// Warps of a block, of at most 168 registers a thread (16 of 128 a multiprocessor spill: with eight heads a group
/// 64 x 32,768 keys took 623 us instead of 604); fewer where pages are large, so that shared memory has room.
__host__ __device__ constexpr int code_warps(const tq::PageShape& shape, int n_sets) {
  return (comes_whole(shape) ? 12 : 8) / code_blocks(n_sets);
}
/// Slots of a warp: what it has in shared memory or on its way there.
__host__ __device__ constexpr int ring_depth(const tq::PageShape& shape) { return comes_whole(shape) ? 2 : 3; }
inline constexpr int kSetHeads = 4;      ///< heads that are computed at once; a block takes one set or two
inline constexpr int kPieceTokens = 16;  ///< of an exact page, that a warp takes at once
inline constexpr int kPagePieces = kPageTokens / kPieceTokens;
/// Parts of a block that are known at a time; no block has fewer warps.
inline constexpr int kPartsKnown = 4;
/// Blocks that make a row's result, at most: each has the heads of a set for itself.
inline constexpr int kMostMerging = 4;

/// What a row reads, in units of a page of codes: its exact pages come first, then the codes.
struct RowCut {
  int last, n_exact, n_codes, units;
  __device__ RowCut(int exact_units, int position) {
    last = position / kPageTokens;
    n_exact = min(last, static_cast<int>(kExactTail)) + 1;
    n_codes = last + 1 - n_exact;
    units = n_exact * exact_units + n_codes;
  }
  __device__ int exact_page(int i) const { return i == 0 ? 0 : last - n_exact + 1 + i; }
};

/// A part of a row, as the table of parts has it, which leaves the last three words to the block that takes it.
struct alignas(16) RowPart {
  RowOnDevice row;
  int index;                  ///< of the row in its set
  int part, n_parts;          ///< n_parts 0: there is no such part
  int slot;                   ///< of the row's first part among all
  int exact_begin, n_pieces;  ///< of the row's exact pages, the first; pieces of 16 tokens that the row sees
  int begin, end;             ///< pages of codes
  int n_merging;              ///< its last parts' blocks, that make the row's result
  int head_block, kv_head, n_heads;
  __device__ bool has_codes() const { return begin < end; }
  __device__ bool has_exact() const { return n_pieces > 0; }
};

/// Part `number` of all (rows in order, all blocks of heads of a part side by side); false if there are fewer. A warp's
/// work, once the table holds.
__device__ __forceinline__ bool find_part(const CodeSinglesParams& p, int number, RowPart& part) {
  static_assert(sizeof(RowPart) == kRowPartBytes && offsetof(RowPart, head_block) == kRowPartBytes - 12);
  const int lane = static_cast<int>(threadIdx.x) % 32, wanted = number / p.head_blocks;
  if (wanted >= p.most_parts) return false;
  constexpr int kQuads = kRowPartBytes / 16;
  if (lane < kQuads) {
    int4 quad = __ldcg(reinterpret_cast<const int4*>(p.parts + wanted) + lane);
    if (lane == kQuads - 1) {
      quad.y = number % p.head_blocks;
      quad.z = quad.y / p.of_group;
      quad.w = min(kHeadsAtOnce, p.group - quad.y % p.of_group * kHeadsAtOnce);
    }
    reinterpret_cast<int4*>(&part)[lane] = quad;
  }
  __syncwarp();
  return part.n_parts > 0;
}

/// The block's first query head.
__device__ __forceinline__ int first_head(const CodeSinglesParams& p, const RowPart& part) {
  return part.kv_head * p.group + part.head_block % p.of_group * kHeadsAtOnce;
}

}  // namespace firstlight::cuda
