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
  static constexpr int kBoxBytes = kRows * kBoxRowBytes;  ///< of a box of x
  static constexpr int kSums = kRows / 2;                 ///< a lane's, of a slab
  static constexpr int kOwnSums = kSums / kSplit;         ///< of them, those that go to one of the cluster's blocks
  static constexpr int kOwnRows = kRows / kSplit;         ///< of x, whose sums a block finishes
};

struct SkinnyParams {
  CUtensorMap w, x;
  int rows, n;
  int slab_rows;  ///< a multiple of 8, 64 at most
  int n_tiles;
  int n_steps;  ///< stages that all of k takes
  int n_stages, ring_bytes;
  bool bias_is_bf16;
  bool fours;  ///< out and twin are written by four columns
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

/// The ring: a stage is kDepth x [slab][slab_rows, 64 columns] of w, then kDepth x [kRows, 64 columns] of x. A ring of
/// its own for x with few stages makes products slower (qkv of 16 rows 16.2 us instead of 13.0): what L2 has waits
/// behind the weights that the block has asked for, too.
template <class Tile>
struct SkinnyRing {
  MemoryBarrier *full, *empty;
  uint32_t at;
  int stage_bytes, box_bytes, x_at;
  __device__ __forceinline__ SkinnyRing(const SkinnyParams& p, MemoryBarrier* f, MemoryBarrier* e, uint32_t begin)
      : full(f), empty(e), at(begin) {
    box_bytes = p.slab_rows * kBoxRowBytes;
    x_at = Tile::kDepth * Tile::kSlabs * box_bytes;
    stage_bytes = x_at + Tile::kDepth * Tile::kBoxBytes;
  }
  __device__ __forceinline__ uint32_t w_box(int stage, int depth, int slab) const {
    return at + static_cast<uint32_t>(stage * stage_bytes + (depth * Tile::kSlabs + slab) * box_bytes);
  }
  __device__ __forceinline__ uint32_t x_box(int stage, int depth) const {
    return at + static_cast<uint32_t>(stage * stage_bytes + x_at + depth * Tile::kBoxBytes);
  }
};

/// The ring's producer: one thread. Weights are nobody's output: as many as the ring holds are asked for before the
/// predecessor has ended. Loops stay loops: a kernel fetches its instructions anew each time that it starts.
template <class Tile, Join kJoin>
__device__ __forceinline__ void fetch_tiles(const SkinnyParams& p, const SkinnyShare<Tile>& share,
                                            const SkinnyRing<Tile>& ring) {
  const uint64_t policy = policy_read_once();
  const auto fetch_w = [&](int tile, int step, int stage) {
    ring.full[stage].arrive_and_expect(static_cast<unsigned>(ring.stage_bytes));
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
      const int slab = tile * Tile::kSlabs + s;
      const int row = kJoin == Join::silu ? slab / 2 * p.slab_rows + slab % 2 * p.n : slab * p.slab_rows;
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
  // Of a k that is one step long a block of the two has nothing.
  int tile = share.begin < share.end ? share.first_tile : p.n_tiles, step = share.begin;
  const auto go_on = [&] {
    if (++step == share.end) step = share.begin, tile += share.tile_step;
  };
  int n_ahead = 0;
#pragma unroll 1
  for (; n_ahead < p.n_stages && tile < p.n_tiles; ++n_ahead) {
    fetch_w(tile, step, n_ahead);
    go_on();
  }
  wait_for_predecessor();
  let_successor_start();
  // x was written by ordinary stores. Without `.global` this is a fence of the whole GPU besides.
  asm volatile("fence.proxy.async.global;" ::: "memory");
  int x_step = share.begin;
#pragma unroll 1
  for (int i = 0; i < n_ahead; ++i) {
    fetch_x(x_step, i);
    if (++x_step == share.end) x_step = share.begin;
  }
  int stage = 0;
  unsigned parity = 0;
#pragma unroll 1
  while (tile < p.n_tiles) {
    ring.empty[stage].wait(parity);
    fetch_w(tile, step, stage);
    fetch_x(step, stage);
    go_on();
    if (++stage == p.n_stages) stage = 0, parity ^= 1;
  }
}

}  // namespace firstlight::cuda
