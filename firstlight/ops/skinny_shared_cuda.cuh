// SPDX-License-Identifier: Apache-2.0
// What the warps of a skinny product's block have together, and where a thread finishes its results.
#pragma once
#include "firstlight/ops/skinny_tile_cuda.cuh"

namespace firstlight::cuda {

constexpr int kConsumers = 128, kThreads = kConsumers + 64;

/// What a lane has of a tile: sums of [slab][4 j + i], of w's row 16 warp + lane / 4 + (i < 2 ? 0 : 8) of the slab and
/// x's row 8 j + lane % 4 * 2 + i % 2.
template <class Tile>
using LaneSums = float[Tile::kSlabs][Tile::kSums];

/// Four columns of out at a thread, of row thread / 16 of each eight: so that what lies behind the products takes few
/// instructions, which a kernel fetches anew each time that it starts. With a lane's own sums, each with its branches,
/// a kernel had 40 to 88 KB of them.
using Four = float[4];

template <class Tile, Join kJoin>
struct SkinnyShared {
  /// Floats from row to row of `sums`: a warp's stores from LaneSums fall into 32 banks, a row begins at 16 bytes.
  static constexpr int kPitch = 68;
  MemoryBarrier full[kMostSkinnyStages], empty[kMostSkinnyStages], scaled;
  float scales[Tile::kRows];
  /// Of the rows that this block finishes, by the block of the cluster that they come from.
  alignas(16) float sums[Tile::kSplit][Tile::kSlabs][Tile::kOwnRows][kPitch];
  /// What they are added to.
  alignas(16) float old[kJoin == Join::add ? Tile::kSlabs : 0][Tile::kOwnRows][kPitch];
};

/// A warp's: what the norm in front of the product multiplies each row by.
template <class Tile>
__device__ __forceinline__ void find_scales(const SkinnyParams& p, float* scales) {
  wait_for_predecessor();
#pragma unroll
  for (int row = static_cast<int>(threadIdx.x) % 32; row < Tile::kRows; row += 32) {
    float squares = 0;
    if (row < p.rows) {
#pragma unroll 1
      for (int t = 0; t < p.before.n_squares; t += 16) {
        const float* const at = p.before.squares + t * kSkinnyRows + row;
        const int n = p.before.n_squares - t;
        float parts[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) parts[i] = i < n ? at[i * kSkinnyRows] : 0;
#pragma unroll
        for (int i = 0; i < 16; ++i) squares += parts[i];
      }
    }
    scales[row] = rsqrtf(squares / static_cast<float>(p.k) + p.before.eps);
  }
}

/// A thread of the warpgroup that finishes what this block has of a tile.
template <class Tile, Join kJoin>
struct SkinnyPlaces {
  static constexpr int kPasses = Tile::kOwnRows / 8;
  const SkinnyParams& p;
  const SkinnyShare<Tile>& share;
  SkinnyShared<Tile, kJoin>& shared;

  /// The thread's place in pass `pass` over the rows that this block finishes.
  __device__ __forceinline__ int own_row(int pass) const { return pass * 8 + static_cast<int>(threadIdx.x) / 16; }
  __device__ __forceinline__ int row(int pass) const { return share.rank * Tile::kOwnRows + own_row(pass); }
  __device__ __forceinline__ int in_slab() const { return static_cast<int>(threadIdx.x) % 16 * 4; }
  /// Of out, in slabs of `step`; past p.n: nothing there.
  __device__ __forceinline__ int column(int tile, int slab, int step) const {
    return in_slab() < p.slab_rows ? (tile * Tile::kSlabs + slab) / step * p.slab_rows + in_slab() : p.n;
  }
  template <class F>
  __device__ __forceinline__ void each(int column, const F& f) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e < p.n) f(e);
    }
  }
  __device__ __forceinline__ float bias_at(int i) const {
    return p.bias_is_bf16 ? widen(static_cast<const __nv_bfloat16*>(p.bias)[i]) : static_cast<const float*>(p.bias)[i];
  }
  /// The whole sums of four places, times the norm in front.
  __device__ __forceinline__ void take(int slab, int pass, Four& to) const {
    const float scale = p.before.weight ? shared.scales[row(pass)] : 1;
    float4 sum{};
#pragma unroll
    for (int from = 0; from < Tile::kSplit; ++from) {  // in the order of k
      const float4 part = *reinterpret_cast<const float4*>(&shared.sums[from][slab][own_row(pass)][in_slab()]);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    to[0] = sum.x * scale, to[1] = sum.y * scale, to[2] = sum.z * scale, to[3] = sum.w * scale;
  }
  __device__ __forceinline__ void write(int row, int column, const Four& x) const {
    float* const at = p.out + row * p.out_stride + column;
    if (p.fours) {
      *reinterpret_cast<float4*>(at) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
      each(column, [&](int e) { at[e] = x[e]; });
    }
  }
  __device__ __forceinline__ void write_twin(int row, int column, const Four& x) const {
    __nv_bfloat16* const at = p.twin + int64_t{row} * p.n + column;
    if (p.fours) {
      *reinterpret_cast<uint2*>(at) = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
    } else {
      each(column, [&](int e) { at[e] = __float2bfloat16_rn(x[e]); });
    }
  }
};

}  // namespace firstlight::cuda
