// SPDX-License-Identifier: Apache-2.0
// A tile of a skinny product: rows of w by all of k, which the blocks of a cluster have parts of; and how its weights
// and x come into shared memory.
#pragma once
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/skinny_cuda.cuh"
#include "firstlight/ops/tensor_maps_cuda.cuh"
#include "firstlight/ops/wgmma_cuda.cuh"

namespace firstlight::cuda {

constexpr int kMostSkinnyStages = 16;

/// kSlabs of up to 64 rows of w, kDepth boxes of 64 columns a stage, up to kRows rows of x, kSplit blocks for a tile.
template <int kSlabs_, int kDepth_, int kRows_, int kSplit_>
struct SkinnyTile {
  static constexpr int kSlabs = kSlabs_, kDepth = kDepth_, kRows = kRows_, kSplit = kSplit_;
  static constexpr int kXBytes = kRows * kBoxRowBytes;  ///< of a box
  static constexpr int kSums = kRows / 2;               ///< a lane's, of a slab
  static constexpr int kOwnSums = kSums / kSplit;       ///< of them, those that it finishes
};

struct SkinnyParams {
  CUtensorMap w, x;
  int rows, n;
  int slab_rows;  ///< a multiple of 8, 64 at most
  int n_tiles;
  int n_steps;  ///< stages that all of k takes
  int up_row;   ///< w's first row of ups
  int n_stages;
  Join join;
  bool bias_is_bf16;
  const void* bias;
  float* out;
  int64_t out_stride;
  __nv_bfloat16* twin;
  int k;
  SkinnyNorm before, behind;
};

/// What one block has to do: tiles first, first + step, …, and of each the steps [begin, end) of k.
template <class Tile>
struct SkinnyShare {
  int rank, first_tile, tile_step, begin, end;
  __device__ __forceinline__ explicit SkinnyShare(const SkinnyParams& p) {
    rank = static_cast<int>(blockIdx.x) % Tile::kSplit;
    first_tile = static_cast<int>(blockIdx.x) / Tile::kSplit;
    tile_step = static_cast<int>(gridDim.x) / Tile::kSplit;
    begin = p.n_steps * rank / Tile::kSplit;
    end = p.n_steps * (rank + 1) / Tile::kSplit;
  }
};

/// The ring: a stage is kDepth x [slab][slab_rows, 64 columns] of w, then kDepth x [kRows, 64 columns] of x.
template <class Tile>
struct SkinnyRing {
  MemoryBarrier *full, *empty;
  uint32_t at;
  int stage_bytes, box_bytes, x_at;
  __device__ __forceinline__ SkinnyRing(const SkinnyParams& p, MemoryBarrier* f, MemoryBarrier* e, uint32_t begin)
      : full(f), empty(e), at(begin) {
    box_bytes = p.slab_rows * kBoxRowBytes;
    x_at = Tile::kDepth * Tile::kSlabs * box_bytes;
    stage_bytes = x_at + Tile::kDepth * Tile::kXBytes;
  }
  __device__ __forceinline__ uint32_t w_box(int stage, int depth, int slab) const {
    return at + static_cast<uint32_t>(stage * stage_bytes + (depth * Tile::kSlabs + slab) * box_bytes);
  }
  __device__ __forceinline__ uint32_t x_box(int stage, int depth) const {
    return at + static_cast<uint32_t>(stage * stage_bytes + x_at + depth * Tile::kXBytes);
  }
};

/// The ring's producer: one thread. Weights are nobody's output: as many as the ring holds are asked for before the
/// predecessor has ended.
template <class Tile>
__device__ __forceinline__ void fetch_tiles(const SkinnyParams& p, const SkinnyShare<Tile>& share,
                                            const SkinnyRing<Tile>& ring) {
  const uint64_t policy = policy_read_once();
  const auto fetch_w = [&](int tile, int step, int stage) {
    ring.full[stage].arrive_and_expect(static_cast<unsigned>(ring.stage_bytes));
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
      const int slab = tile * Tile::kSlabs + s;
      const int row = p.join == Join::silu ? slab / 2 * p.slab_rows + slab % 2 * p.up_row : slab * p.slab_rows;
#pragma unroll
      for (int d = 0; d < Tile::kDepth; ++d) {
        copy_box(ring.w_box(stage, d, s), p.w, (step * Tile::kDepth + d) * kBoxColumns, row, ring.full[stage], policy);
      }
    }
  };
  const auto fetch_x = [&](int step, int stage) {
#pragma unroll
    for (int d = 0; d < Tile::kDepth; ++d) {
      copy_box(ring.x_box(stage, d), p.x, (step * Tile::kDepth + d) * kBoxColumns, 0, ring.full[stage]);
    }
  };
  const int n_steps = share.end - share.begin;
  const int n_tiles = (p.n_tiles - share.first_tile + share.tile_step - 1) / share.tile_step, n = n_tiles * n_steps;
  const auto tile_of = [&](int i) { return share.first_tile + i / n_steps * share.tile_step; };
  const auto step_of = [&](int i) { return share.begin + i % n_steps; };
  const int n_ahead = min(p.n_stages, n);
  for (int i = 0; i < n_ahead; ++i) fetch_w(tile_of(i), step_of(i), i);
  wait_for_predecessor();
  let_successor_start();
  // x was written by ordinary stores. Without `.global` this is a fence of the whole GPU besides.
  asm volatile("fence.proxy.async.global;" ::: "memory");
  for (int i = 0; i < n_ahead; ++i) fetch_x(step_of(i), i);
  int stage = 0;
  unsigned parity = 0;
  for (int i = n_ahead; i < n; ++i) {
    ring.empty[stage].wait(parity);
    fetch_w(tile_of(i), step_of(i), stage);
    fetch_x(step_of(i), stage);
    if (++stage == p.n_stages) stage = 0, parity ^= 1;
  }
}

}  // namespace firstlight::cuda
