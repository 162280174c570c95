// SPDX-License-Identifier: Apache-2.0
// How single rows over codes are cut into parts, one a block at a time, and what a block knows of its parts. A row's
// bits depend on its own length and its number of parts; the number follows from how much the whole batch has to read.
#pragma once
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
/// Warps of a block: 12 of at most 168 registers a thread (16 of 128 spill: with eight heads a group 64 x 32,768 keys
/// took 623 us instead of 604); 8 where pages are large, so that shared memory has room.
__host__ __device__ constexpr int code_warps(const tq::PageShape& shape) { return comes_whole(shape) ? 12 : 8; }
/// Slots of a warp: what it has in shared memory or on its way there.
__host__ __device__ constexpr int ring_depth(const tq::PageShape& shape) { return comes_whole(shape) ? 2 : 3; }
inline constexpr int kMostDeep = 3;
inline constexpr int kSetHeads = 4;      ///< heads that are computed at once; a block takes one set or two
inline constexpr int kPieceTokens = 16;  ///< of an exact page, that a warp takes at once
inline constexpr int kPagePieces = kPageTokens / kPieceTokens;
/// Parts of a block that are known at a time; no block has fewer warps.
inline constexpr int kPartsKnown = 8;

/// a / b rounded up, for 0 ≤ a < 2²³ and b > 0; the compiler's own division takes three times the instructions.
__device__ __forceinline__ int ceil_quotient(int a, int b) {
  const int n = a + b - 1, q = __float2int_rz(__fdividef(static_cast<float>(n), static_cast<float>(b))),
            rest = n - q * b;
  return q + static_cast<int>(rest >= b) - static_cast<int>(rest < 0);
}

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

/// A part of a row, for all its heads, as the table of parts has it.
struct alignas(16) RowPart {
  RowOnDevice row;
  int index;                  ///< of the row in its set
  int part, n_parts;          ///< n_parts 0: there is no such part
  int slot;                   ///< of the row's first part among all
  int exact_begin, n_pieces;  ///< of the row's exact pages, the first; pieces of 16 tokens that the row sees
  int begin, end;             ///< pages of codes
  int per_part;               ///< units
  int unused[3];
};

/// What a block works on.
struct CodePart : RowPart {
  int kv_head, first_head, n_heads, head_block;
};

/// Part `number` of all (rows in order, all blocks of heads of a part side by side); false if there are fewer. A warp's
/// work, once the table holds.
__device__ __forceinline__ bool find_part(const CodeSinglesParams& p, int number, CodePart& part) {
  static_assert(sizeof(RowPart) == kRowPartBytes);
  const int lane = static_cast<int>(threadIdx.x) % 32, wanted = number / p.head_blocks;
  if (wanted >= p.most_parts) return false;
  if (lane < 4) reinterpret_cast<uint4*>(&part)[lane] = __ldcg(reinterpret_cast<const uint4*>(p.parts + wanted) + lane);
  if (lane == 4) {
    part.head_block = number % p.head_blocks;
    part.kv_head = part.head_block / p.of_group;
    const int in_group = part.head_block % p.of_group * kHeadsAtOnce;
    part.first_head = part.kv_head * p.group + in_group;
    part.n_heads = min(kHeadsAtOnce, p.group - in_group);
  }
  __syncwarp();
  return part.n_parts > 0;
}

}  // namespace firstlight::cuda
