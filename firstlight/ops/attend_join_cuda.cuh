// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: a chunk's sums are made of its warps', always in the same order, and passed on through L2
// if others have the rest of its section or row.
#pragma once
#include "firstlight/ops/attend_chunks_cuda.cuh"

namespace firstlight::cuda {

/// Four neighbouring values from column `column` on.
__device__ __forceinline__ void deliver(const AttendParams& p, const RowOnDevice& row, int64_t column, float4 x) {
  *reinterpret_cast<float4*>(p.out.data + row.row * p.out.stride + column) = x;
  const int64_t at = row.row * p.out.cols + column;
  if (p.twin) *reinterpret_cast<uint2*>(p.twin + at) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
}

__device__ __forceinline__ float4 scaled_sum(float4 sum, float share, float4 x) {
  return make_float4(sum.x + share * x.x, sum.y + share * x.y, sum.z + share * x.z, sum.w + share * x.w);
}
__device__ __forceinline__ float4 quotients(float4 x, float by) {
  const float share = 1 / by;
  return make_float4(x.x * share, x.y * share, x.z * share, x.w * share);
}

/// A piece as it passes from block to block, through L2.
struct PieceInFlight {
  float4 sums = {};
  float2 share = {-INFINITY, 0};  ///< maximum and divisor
  PieceInFlight() = default;
  __device__ explicit PieceInFlight(const Running& x) : sums(x.sums), share(make_float2(x.top, x.total)) {}
  __device__ __forceinline__ Running running() const { return {sums, share.x, share.y}; }
  __device__ __forceinline__ void load(const ChunkPiece* from) {
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(sums.x), "=f"(sums.y), "=f"(sums.z), "=f"(sums.w)
                 : "l"(from)
                 : "memory");
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
                 : "=f"(share.x), "=f"(share.y)
                 : "l"(&from->maximum)
                 : "memory");
  }
  __device__ __forceinline__ void store(ChunkPiece* to) const {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(sums.x), "f"(sums.y),
                 "f"(sums.z), "f"(sums.w)
                 : "memory");
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(&to->maximum), "f"(share.x), "f"(share.y)
                 : "memory");
  }
  __device__ __forceinline__ bool is_whole() const {
    const auto is_there = [](float x) { return __float_as_uint(x) != 0xffffffffu; };
    return is_there(sums.x) && is_there(sums.y) && is_there(sums.z) && is_there(sums.w) && is_there(share.x) &&
           is_there(share.y);
  }
  __device__ __forceinline__ static void clear(ChunkPiece* at) {
    const float unset = __uint_as_float(0xffffffffu);
    PieceInFlight none;
    none.sums = make_float4(unset, unset, unset, unset);
    none.share = make_float2(unset, unset);
    none.store(at);
  }
};

/// Shared memory in which a block's warps meet: their sums of a chunk.
template <int kDim>
struct Meeting {
  static constexpr int kStride = kDim + 4;  // heads 2t of lanes t in different banks
  float* sums;                              // [kSinglesWarps][heads][kStride]
  float (*maxima)[kHeadsAtOnce], (*divisors)[kHeadsAtOnce];
  int heads;
  __device__ float& sum(int warp, int head, int i) const { return sums[(warp * heads + head) * kStride + i]; }
};

/// What a block has added up of an item's chunks, each thread of the pieces it joins.
template <int kDim>
struct Added {
  static constexpr int kPieces = kHeadsAtOnce * (kDim / 4) / (kSinglesWarps * 32);
  Running section[kPieces];
  SectionTree row[kPieces];
};

/// Piece `at` of a chunk, from the warps' sums in order; never -0, so that adding it to nothing leaves it as it is.
template <int kDim>
__device__ __forceinline__ Running join_piece(const Meeting<kDim>& meeting, int at) {
  const int g = at / (kDim / 4), i = at % (kDim / 4) * 4;
  Running piece;
  piece.top = meeting.maxima[0][g];
#pragma unroll
  for (int w = 1; w < kSinglesWarps; ++w) piece.top = fmaxf(piece.top, meeting.maxima[w][g]);
#pragma unroll
  for (int w = 0; w < kSinglesWarps; ++w) {
    const float share = power_of_two(meeting.maxima[w][g] - piece.top);  // warp 0 has a visible key: top is finite
    piece.sums = scaled_sum(piece.sums, share, *reinterpret_cast<const float4*>(&meeting.sum(w, g, i)));
    piece.total += share * meeting.divisors[w][g];
  }
  piece.sums = make_float4(piece.sums.x + 0.0f, piece.sums.y + 0.0f, piece.sums.z + 0.0f, piece.sums.w + 0.0f);
  return piece;
}

/// The block's warps have put their sums of a chunk down: they are added up, and passed on if the item ends before the
/// section does, as the section's if that is whole and the row is not, or as the row's result. All threads call.
template <int kDim>
__device__ void join_warps(const SinglesParams& p, const Item& item, int chunk, const Meeting<kDim>& meeting,
                           Added<kDim>& added) {
  const int section = quotient(chunk, item.per_section), first = section * item.per_section;
  const int last = min(first + item.per_section, item.n_chunks) - 1;
  const bool whole_section = first >= item.first_chunk && last < item.end_chunk;
  const bool whole_row = item.first_chunk == 0 && item.end_chunk == item.n_chunks;
  ChunkPiece* const pieces = pieces_of(p, item) + int64_t{whole_section ? first : chunk} * p.heads * (kDim / 4);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Added<kDim>::kPieces; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kSinglesWarps * 32;
    if (at >= item.n_heads * (kDim / 4)) break;
    const Running piece = join_piece(meeting, at);
    if (!whole_section) {
      PieceInFlight(piece).store(pieces + at);
      continue;
    }
    Running& sum = added.section[i];
    sum.add(piece.sums, piece.top, piece.total);
    if (chunk < last) continue;
    if (whole_row) {
      added.row[i].add(section, last + 1 == item.n_chunks, sum);
      if (last + 1 == item.n_chunks)
        deliver(p.attend, item.row, int64_t{item.first_head} * kDim + at * 4, quotients(sum.sums, sum.total));
    } else {
      PieceInFlight(sum).store(pieces + at);
    }
    sum = Running{};
  }
  __syncthreads();
}

}  // namespace firstlight::cuda
