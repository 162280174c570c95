// SPDX-License-Identifier: Apache-2.0
// The kernel: a warp that fetches, and a warpgroup that multiplies, meets the cluster's others and writes.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/skinny_cuda.cuh"
#include "firstlight/ops/skinny_tile_cuda.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kConsumers = 128, kThreads = kConsumers + 64;

/// What a lane has of a tile: sums of [slab][4 j + i], of w's row 16 warp + lane / 4 + (i < 2 ? 0 : 8) of the slab and
/// x's row 8 j + lane % 4 * 2 + i % 2.
template <class Tile>
using LaneSums = float[Tile::kSlabs][Tile::kSums];

/// Each block's sums for the others of its cluster, by the block that they come from.
template <class Tile>
struct SkinnyShared {
  static constexpr int kPairs = Tile::kSplit == 1 ? 0 : Tile::kSlabs * Tile::kOwnSums / 2;
  MemoryBarrier full[kMostSkinnyStages], empty[kMostSkinnyStages], scaled;
  float scales[kSkinnyRows], squares[kConsumers / 32][kSkinnyRows];
  float2 sums[Tile::kSplit * kPairs + 1][kConsumers];
};

/// Calls f(slab, j, row, column, there) for each of the lane's places in out; `there`: block `rank` finishes it. In
/// large tiles what can be is computed for all: behind a branch each they would come one after another (32 x 512 tokens
/// of 8B's shapes 4.63 ms a step, 4.68 with branches); in small ones most places are no row's (1 x 512 over codes: 4.13
/// and 4.10).
template <class Tile, class F>
__device__ __forceinline__ void for_each_place(const SkinnyParams& p, int tile, int rank, int slab_step, const F& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int s = 0; s < Tile::kSlabs; s += slab_step) {
    const int slab = (tile * Tile::kSlabs + s) / slab_step;
#pragma unroll
    for (int j = 0; j < Tile::kSums; ++j) {
      const int in_slab = warp * 16 + lane / 4 + j % 4 / 2 * 8, row = j / 4 * 8 + lane % 4 * 2 + j % 2;
      const int column = slab * p.slab_rows + in_slab;
      const bool there = j / Tile::kOwnSums == rank && in_slab < p.slab_rows && row < p.rows && column < p.n;
      if (Tile::kRows > 16 || there) f(s, j, row, column, there);
    }
  }
}

/// A warp of the warpgroup that empties the ring.
template <class Tile>
struct Consumer {
  const SkinnyParams& p;
  const SkinnyShare<Tile>& share;
  const SkinnyRing<Tile>& ring;
  SkinnyShared<Tile>& shared;
  int stage = 0;
  unsigned parity = 0;

  /// A warp's: what each row's sums are multiplied by.
  __device__ static __forceinline__ void find_scales(const SkinnyParams& p, float* scales) {
    const int row = static_cast<int>(threadIdx.x) % 32;
    wait_for_predecessor();
    float squares = 0;
    if (row < p.rows) {
#pragma unroll 16
      for (int t = 0; t < p.before.n_squares; ++t) squares += p.before.squares[t * kSkinnyRows + row];
    }
    scales[row] = rsqrtf(squares / static_cast<float>(p.k) + p.before.eps);
  }
  __device__ static __forceinline__ void meet_others() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }
  __device__ __forceinline__ float bias_at(int i) const {
    return p.bias_is_bf16 ? widen(static_cast<const __nv_bfloat16*>(p.bias)[i]) : static_cast<const float*>(p.bias)[i];
  }
  __device__ __forceinline__ void release(int s) {
    if (threadIdx.x % 32 == 0) ring.empty[s].arrive();
  }
  /// Adds a tile's products with the block's part of k. A stage is given back when the next one's are on their way.
  __device__ __forceinline__ void multiply(LaneSums<Tile>& sums) {
    int before = -1;
    for (int step = share.begin; step < share.end; ++step) {
      ring.full[stage].wait(parity);
      wgmma_fence();
#pragma unroll
      for (int c = 0; c < Tile::kDepth * 4; ++c) {
        const uint32_t in_box = c % 4 * 32;
        const uint64_t x = matrix_in_shared(ring.x_box(stage, c / 4) + in_box);
#pragma unroll
        for (int s = 0; s < Tile::kSlabs; ++s) {
          wgmma(sums[s], matrix_in_shared(ring.w_box(stage, c / 4, s) + in_box), x);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (before >= 0) release(before);
      before = stage;
      if (++stage == p.n_stages) stage = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    wgmma_done(sums);
    if (before >= 0) release(before);
  }
  /// Adds up what the cluster's blocks have, in the order of k; of each sum in the block that finishes it. Once: a
  /// second tile would write over sums that a slower block has yet to read.
  __device__ __forceinline__ void meet(LaneSums<Tile>& sums) {
    constexpr int kPairs = SkinnyShared<Tile>::kPairs, kOwn = Tile::kOwnSums;
    cluster_wait();
    const uint32_t own = shared_address(&shared.sums[share.rank * kPairs][threadIdx.x]);
#pragma unroll
    for (int to = 0; to < Tile::kSplit; ++to) {
      if (to == share.rank) continue;
      const uint32_t there = address_at(own, to);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float* pair = &sums[2 * i / kOwn][to * kOwn + 2 * i % kOwn];
        store_at(there + static_cast<uint32_t>(i * kConsumers) * sizeof(float2), make_float2(pair[0], pair[1]));
      }
    }
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
#pragma unroll
      for (int rank = 0; rank < Tile::kSplit; ++rank) {
        if (rank != share.rank) continue;
        float* pair = &sums[2 * i / kOwn][rank * kOwn + 2 * i % kOwn];
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int from = 0; from < Tile::kSplit; ++from) {
          const float2 part =
              from == rank ? make_float2(pair[0], pair[1]) : shared.sums[from * kPairs + i][threadIdx.x];
          sum.x += part.x, sum.y += part.y;
        }
        pair[0] = sum.x, pair[1] = sum.y;
      }
    }
  }
  /// The norm in front.
  __device__ __forceinline__ void scale(LaneSums<Tile>& sums) const {
    if (!p.before.weight) return;
    shared.scaled.wait(0);
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int j = 0; j < Tile::kSums; ++j) {
      const float by = shared.scales[j / 4 * 8 + lane % 4 * 2 + j % 2];
#pragma unroll
      for (int s = 0; s < Tile::kSlabs; ++s) sums[s][j] *= by;
    }
  }
  __device__ __forceinline__ void write_silu(int tile, LaneSums<Tile>& sums) const {
    if (p.bias) {
      for_each_place<Tile>(p, tile, share.rank, 2, [&](int slab, int j, int, int column, bool there) {
        if (there) sums[slab][j] += bias_at(column), sums[slab + 1][j] += bias_at(p.n + column);
      });
    }
    for_each_place<Tile>(p, tile, share.rank, 2, [&](int slab, int j, int row, int column, bool there) {
      const float gate = sums[slab][j], value = gate / (1 + __expf(-gate)) * sums[slab + 1][j];
      if (there) p.out[row * p.out_stride + column] = value;
      if (there && p.twin) p.twin[int64_t{row} * p.n + column] = __float2bfloat16_rn(value);
    });
  }
  /// For the norm behind: of out's values, which `sums` are now (zero where there are none).
  __device__ __forceinline__ void write_normed(int tile, const LaneSums<Tile>& sums,
                                               const float (&weights)[Tile::kSlabs][2]) {
    for_each_place<Tile>(p, tile, share.rank, 1, [&](int slab, int j, int row, int column, bool there) {
      if (there) p.twin[int64_t{row} * p.n + column] = __float2bfloat16_rn(sums[slab][j] * weights[slab][j % 4 / 2]);
    });
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    float squares[Tile::kSums / 2] = {};  // of row [i / 2 * 8 + lane % 4 * 2 + i % 2]
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
#pragma unroll
      for (int j = 0; j < Tile::kSums; ++j) squares[j / 4 * 2 + j % 2] += sums[s][j] * sums[s][j];
    }
#pragma unroll
    for (int far = 4; far < 32; far *= 2) {
#pragma unroll
      for (int i = 0; i < Tile::kSums / 2; ++i) squares[i] += __shfl_xor_sync(0xffffffffu, squares[i], far);
    }
#pragma unroll
    for (int i = 0; i < Tile::kSums / 2; ++i) {
      if (lane < 4) shared.squares[warp][i / 2 * 8 + lane * 2 + i % 2] = squares[i];
    }
    meet_others();
    if (warp == 0 && lane / (Tile::kRows / Tile::kSplit) == share.rank) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kConsumers / 32; ++w) sum += shared.squares[w][lane];
      p.behind.squares[tile * kSkinnyRows + lane] = sum;
    }
    meet_others();
  }
  __device__ __forceinline__ void consume(int tile) {
    LaneSums<Tile> sums = {}, old = {};
    float weights[Tile::kSlabs][2] = {};  // of the norm behind, by slab and j % 4 / 2
    if (p.join != Join::silu) {           // what the sums are added to is there when they are
      for_each_place<Tile>(p, tile, share.rank, 1, [&](int slab, int j, int row, int column, bool there) {
        if (there && p.join == Join::add) old[slab][j] = p.out[row * p.out_stride + column];
        if (there && p.behind.weight) weights[slab][j % 4 / 2] = widen(p.behind.weight[column]);
      });
      if (p.bias) {
        for_each_place<Tile>(p, tile, share.rank, 1, [&](int slab, int j, int, int column, bool there) {
          if (there) old[slab][j] += bias_at(column);
        });
      }
    }
    multiply(sums);
    if constexpr (Tile::kSplit > 1) meet(sums);
    scale(sums);
    if (Tile::kSlabs % 2 == 0 && p.join == Join::silu) return write_silu(tile, sums);
    LaneSums<Tile> values = {};
    for_each_place<Tile>(p, tile, share.rank, 1, [&](int slab, int j, int row, int column, bool there) {
      values[slab][j] = there ? sums[slab][j] + old[slab][j] : 0;
      if (there) p.out[row * p.out_stride + column] = values[slab][j];
    });
    if (p.behind.weight) write_normed(tile, values, weights);
  }
};

template <class Tile>
__global__ void __cluster_dims__(Tile::kSplit) __launch_bounds__(kThreads, 1)
    skinny_kernel(const __grid_constant__ SkinnyParams p) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte stages[];
  __shared__ alignas(16) std::byte memory[sizeof(SkinnyShared<Tile>)];
  SkinnyShared<Tile>& shared = *reinterpret_cast<SkinnyShared<Tile>*>(memory);
  const SkinnyShare<Tile> share(p);
  const SkinnyRing<Tile> ring(p, shared.full, shared.empty, (shared_address(stages) + 1023) & ~1023u);
  if (threadIdx.x == 0) {
    for (int s = 0; s < p.n_stages; ++s) {
      shared.full[s].init(1);
      shared.empty[s].init(kConsumers / 32);
    }
    shared.scaled.init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if constexpr (Tile::kSplit > 1) cluster_arrive();
  if (threadIdx.x == kConsumers) {
    fetch_tiles<Tile>(p, share, ring);
  } else if (threadIdx.x >= kConsumers + 32) {
    if (p.before.weight) {
      Consumer<Tile>::find_scales(p, shared.scales);
      __syncwarp();
      if (threadIdx.x % 32 == 0) shared.scaled.arrive();
    }
  } else if (threadIdx.x < kConsumers) {
    wait_for_predecessor();
    let_successor_start();
    Consumer<Tile> consumer{p, share, ring, shared};
    for (int tile = share.first_tile; tile < p.n_tiles; tile += share.tile_step) consumer.consume(tile);
  }
#endif
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Tile>
void start(const SkinnyProduct& m, int slab_rows, const GpuShape& gpu, const TensorMaps& maps, SkinnyParams& p,
           cudaStream_t stream) {
  const int64_t w_rows = m.join == Join::silu ? int64_t{2} * m.n : m.n;
  p.w = maps.of(m.w, w_rows, m.k, slab_rows);
  p.x = maps.of(m.x, m.rows, m.k, Tile::kRows);
  p.slab_rows = slab_rows;
  p.n_steps = static_cast<int>(ceil_div(m.k, Tile::kDepth * kBoxColumns));
  p.n_tiles = static_cast<int>(ceil_div(w_rows, slab_rows * Tile::kSlabs));
  const int stage_bytes = Tile::kDepth * (Tile::kSlabs * slab_rows * kBoxRowBytes + Tile::kXBytes);
  // Beside the ring: what aligns it, and the 64 rows that a product reads of a last slab that has fewer.
  constexpr int kBeside = 1024 + 64 * kBoxRowBytes, kStaticBytes = sizeof(SkinnyShared<Tile>) + 64;
  p.n_stages = std::min(kMostSkinnyStages, (gpu.shared_bytes - kStaticBytes - kBeside) / stage_bytes);
  const int n_blocks = Tile::kSplit > 1 ? p.n_tiles * Tile::kSplit : std::min(gpu.n_sms, p.n_tiles);
  const int bytes = p.n_stages * stage_bytes + kBeside;
  const auto kernel = skinny_kernel<Tile>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_bytes - kStaticBytes),
        "allow a skinny product its shared memory");
  launch("skinny product", kernel, dim3(static_cast<unsigned>(n_blocks)), kThreads, static_cast<size_t>(bytes), stream,
         p);
}

/// Rows of w in a slab so that the GPU's blocks have as many each, all at once if 64 are enough.
int slab_rows_for(int64_t n, int64_t n_slabs_at_once) {
  const int64_t turns = ceil_div(n, 64 * n_slabs_at_once);
  return static_cast<int>(std::min<int64_t>(64, ceil_div(ceil_div(n, turns * n_slabs_at_once), 8) * 8));
}

/// Of a tile: two slabs, one, or one whose k two blocks share.
enum class Kind : uint8_t { pair, single, halves };
struct Shape {
  Kind kind;
  int slab_rows;
  int64_t n_tiles(int64_t w_rows) const { return ceil_div(w_rows, kind == Kind::pair ? 2 * slab_rows : slab_rows); }
};

/// The tile, by w alone: so a row's bits do not depend on the others. Llama-3.1-8B on an H200 at 32 rows, plain reads
/// at 4,640 GB/s: gate_up 55.5 us (four slabs a tile 58.5), head 248 (one slab 252), qkv 15.0 (two blocks a tile 15.3),
/// o and down, whose k two blocks share, 10.6 and 29.1 (one block a tile 14.0 and 38.2, four 18.0 and 43.5).
Shape shape_of(Join join, int n, int n_sms) {
  if (join == Join::silu) return {Kind::pair, slab_rows_for(n, n_sms)};
  if (n > 64 * n_sms) return {Kind::pair, slab_rows_for(n, 2 * n_sms)};
  if (n > 32 * n_sms) return {Kind::single, slab_rows_for(n, n_sms)};
  return {Kind::halves, slab_rows_for(n, n_sms / 2)};
}

template <int kRows>
void start(const SkinnyProduct& m, const GpuShape& gpu, const TensorMaps& maps, SkinnyParams& p, cudaStream_t stream) {
  const Shape shape = shape_of(m.join, m.n, gpu.n_sms);
  if (shape.kind == Kind::pair) return start<SkinnyTile<2, 2, kRows, 1>>(m, shape.slab_rows, gpu, maps, p, stream);
  if (shape.kind == Kind::single) return start<SkinnyTile<1, 2, kRows, 1>>(m, shape.slab_rows, gpu, maps, p, stream);
  start<SkinnyTile<1, 4, kRows, 2>>(m, shape.slab_rows, gpu, maps, p, stream);
}

}  // namespace

int SkinnyProducts::n_squares(int n) const { return static_cast<int>(shape_of(Join::add, n, gpu_.n_sms).n_tiles(n)); }

void SkinnyProducts::multiply(const SkinnyProduct& m, cudaStream_t stream) const {
  SkinnyParams p{};
  p.rows = m.rows;
  p.n = m.n;
  p.up_row = m.n;
  p.join = m.join;
  p.bias = m.bias;
  p.bias_is_bf16 = m.bias_is_bf16;
  p.out = m.out;
  p.out_stride = m.out_stride;
  p.twin = m.twin;
  p.k = m.k;
  p.before = m.before;
  p.behind = m.behind;
  if (m.rows <= 16) {
    start<16>(m, gpu_, maps_, p, stream);
  } else {
    start<kSkinnyRows>(m, gpu_, maps_, p, stream);
  }
}

}  // namespace firstlight::cuda
