// SPDX-License-Identifier: Apache-2.0
// A row's result from the sums of its parts, which pass from block to block through L2 as those of bf16 pages do.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"

namespace firstlight::cuda {

/// Pieces from part to part.
template <int kDim>
__device__ __forceinline__ int64_t part_pitch(const CodeSinglesParams& p) {
  return int64_t{p.head_blocks} * kHeadsAtOnce * (kDim / 4);
}
/// Of a row's first part.
template <int kDim>
__device__ __forceinline__ ChunkPiece* first_pieces(const CodeSinglesParams& p, const RowPart& part) {
  return p.sums + part.slot * part_pitch<kDim>(p) + int64_t{part.head_block} * kHeadsAtOnce * (kDim / 4);
}

/// What values of head `g` of the part from channel `i` on are stored without.
__device__ __forceinline__ float4 means_of(const CodeSinglesParams& p, const RowPart& part, int i) {
  const KvLayer& kv = p.codes.attend.kv;
  return make_float4(mean_of(kv, 1, part.kv_head, i), mean_of(kv, 1, part.kv_head, i + 1),
                     mean_of(kv, 1, part.kv_head, i + 2), mean_of(kv, 1, part.kv_head, i + 3));
}
template <int kDim>
__device__ __forceinline__ void finish_piece(const CodeSinglesParams& p, const RowPart& part, int g, int i,
                                             const Running& all, const float4& means) {
  deliver(p.codes.attend, part.row, (int64_t{first_head(p, part)} + g) * kDim + i,
          scaled_sum(means, 1, quotients(all.sums, all.total)));
}

/// So many parts of a row are added by the last one's block, each piece by the thread that has it of that part.
inline constexpr int kFewParts = 7;

/// Their sum, whose terms do not wait for one another. Those that there are not weigh nothing.
template <int kMost>
__device__ __forceinline__ Running sum_of(const PieceInFlight (&x)[kMost]) {
  Running all;
#pragma unroll
  for (int i = 0; i < kMost; ++i) all.top = fmaxf(all.top, x[i].share.x);
  const float base = all.top == -INFINITY ? 0 : all.top;
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const float weight = power_of_two(x[i].share.x - base);
    all.sums = scaled_sum(all.sums, weight, x[i].sums);
    all.total += weight * x[i].share.y;
  }
  return all;
}

/// The sum of every `step`-th part from `first` on.
__device__ __forceinline__ Running sum_of_parts(ChunkPiece* from, int64_t pitch, int first, int step, int n_parts) {
  constexpr int kDeep = 6;
  Running sum;
  for (int i = first; i < n_parts; i += step * kDeep) {
    PieceInFlight x[kDeep];
    take_pieces(from + i * pitch, pitch * step, min(kDeep, (n_parts - i + step - 1) / step), false, x);
    sum.add(sum_of(x));
  }
  return sum;
}

/// Waits for the row's other parts, which are many: warps take them in turn, and every block some heads. Which block
/// makes a head's result changes no bit. All threads call.
template <int kDim, int kWarps, class Shared>
__device__ void merge_many(const CodeSinglesParams& p, const RowPart& part, Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const bool has_piece = lane < kDim / 4;
  ChunkPiece* const pieces = first_pieces<kDim>(p, part) + lane;
  const int64_t pitch = part_pitch<kDim>(p);
  for (int g = part.part - part.n_parts + part.n_merging; g < part.n_heads; g += part.n_merging) {
    const float4 means = means_of(p, part, lane * 4);
    if (has_piece) {
      const Running sum = sum_of_parts(pieces + g * (kDim / 4), pitch, warp, kWarps, part.n_parts);
      shared.merge.sums[warp][lane] = sum.sums;
      shared.merge.shares[warp][lane] = make_float2(sum.top, sum.total);
    }
    __syncthreads();
    if (warp == 0 && has_piece) {
      PieceInFlight x[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        x[w].sums = shared.merge.sums[w][lane], x[w].share = shared.merge.shares[w][lane];
      finish_piece<kDim>(p, part, g, lane * 4, sum_of(x), means);
    }
    __syncthreads();
  }
}

/// The part's pieces become the row's result, or are passed on to the blocks that make it. All threads call.
template <int kDim, int kSets, int kWarps, class Shared>
__device__ __forceinline__ void pass_on(const CodeSinglesParams& p, const RowPart& part,
                                        CodePieces<kDim, kSets, kWarps>& pieces, Shared& shared) {
  const bool few = part.n_parts <= kFewParts, is_last = part.part == part.n_parts - 1;
  ChunkPiece* const first = first_pieces<kDim>(p, part);
  const int64_t pitch = part_pitch<kDim>(p);
  pieces.each(part.n_heads, [&](const Running& piece, int g, int i) {
    ChunkPiece* const at = first + g * (kDim / 4) + i / 4;
    if (!few || !is_last) return PieceInFlight(piece).store(at + part.part * pitch);
    const float4 means = means_of(p, part, i);
    PieceInFlight x[kFewParts];
    x[kFewParts - 1] = PieceInFlight(piece);
    take_pieces(at, pitch, part.part, false, x);
    finish_piece<kDim>(p, part, g, i, sum_of(x), means);
  });
  if (!few && part.part >= part.n_parts - part.n_merging) merge_many<kDim, kWarps>(p, part, shared);
}

}  // namespace firstlight::cuda
