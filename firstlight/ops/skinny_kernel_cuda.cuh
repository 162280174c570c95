// SPDX-License-Identifier: Apache-2.0
// The kernel of skinny products: a warp that fetches, a warpgroup that multiplies and finishes, and a warp that finds
// what a norm in front multiplies rows by.
#pragma once
#include <algorithm>

#include "firstlight/ops/skinny_cuda.cuh"
#include "firstlight/ops/skinny_finish_cuda.cuh"
#include "firstlight/ops/skinny_multiply_cuda.cuh"
#include "firstlight/ops/skinny_shape_cuda.cuh"

namespace firstlight::cuda {

template <class Tile, Join kJoin, bool kByWarps>
__global__ void __cluster_dims__(Tile::kSplit) __launch_bounds__(kThreads, 1)
    skinny_kernel(const __grid_constant__ SkinnyParams p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) std::byte stages[];  // the ring, then the rest
  using Shared = SkinnyShared<Tile, kJoin>;
  Shared& shared = *reinterpret_cast<Shared*>(stages + p.ring_bytes);
  const SkinnyShare<Tile> share(p);
  const SkinnyRing<Tile> ring(p, shared.full, shared.empty, shared_address(stages));
  if (threadIdx.x == 0) {
#pragma unroll 1
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
    fetch_tiles<Tile, kJoin>(p, share, ring);
  } else if (threadIdx.x >= kConsumers + 32) {
    if (p.before.weight) {
      find_scales<Tile>(p, shared.scales);
      __syncwarp();
      if (threadIdx.x % 32 == 0) shared.scaled.arrive();
    }
  } else if (threadIdx.x < kConsumers) {
    wait_for_predecessor();
    let_successor_start();
    SkinnyMultiplier<Tile> multiplier{p, share, ring};
    SkinnyFinisher<Tile, kJoin> finisher{{p, share, shared}};
#pragma unroll 1
    for (int tile = share.first_tile; tile < p.n_tiles; tile += share.tile_step) {
      LaneSums<Tile> sums = {};
      if constexpr (kJoin == Join::add) finisher.ask(tile);
      if constexpr (kByWarps) {
        multiplier.multiply_by_warps(sums);
      } else {
        multiplier.multiply(sums);
      }
      finisher.hand_over(sums);
      if (p.before.weight) shared.scaled.wait(0);
      if constexpr (kJoin == Join::silu) {
        finisher.finish_silu(tile);
      } else {
        finisher.finish(tile);
      }
    }
  }
#endif
}

template <bool kByWarps, class Tile, Join kJoin>
void start(const SkinnyProduct& m, int slab_rows, const GpuShape& gpu, const TensorMaps& maps, SkinnyParams& p,
           cudaStream_t stream) {
  const int64_t w_rows = m.join == Join::silu ? int64_t{2} * m.n : m.n;
  p.w = maps.of(m.w, w_rows, m.k, slab_rows);
  p.x = maps.of(m.x, m.rows, m.k, Tile::kRows);
  p.slab_rows = slab_rows;
  p.fours = m.n % 4 == 0 && m.out_stride % 4 == 0 && reinterpret_cast<uintptr_t>(m.out) % 16 == 0;
  p.n_steps = static_cast<int>(ceil_div(m.k, Tile::kDepth * kBoxColumns));
  p.n_tiles = static_cast<int>(ceil_div(w_rows, slab_rows * Tile::kSlabs));
  const int stage_bytes = Tile::kDepth * (Tile::kSlabs * slab_rows * kBoxRowBytes + Tile::kBoxBytes);
  // Behind the ring: more than the 64 rows that a product reads of a last slab that has fewer.
  constexpr int kBehind = std::max<int>(sizeof(SkinnyShared<Tile, kJoin>), 64 * kBoxRowBytes);
  p.n_stages = std::min(kMostSkinnyStages, (gpu.shared_bytes - kBehind) / stage_bytes);
  p.ring_bytes = p.n_stages * stage_bytes;
  const int n_blocks = Tile::kSplit > 1 ? p.n_tiles * Tile::kSplit : std::min(gpu.n_sms, p.n_tiles);
  const int bytes = p.ring_bytes + kBehind;
  const auto kernel = skinny_kernel<Tile, kJoin, kByWarps>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_bytes),
        "allow a skinny product its shared memory");
  launch("skinny product", kernel, dim3(static_cast<unsigned>(n_blocks)), kThreads, static_cast<size_t>(bytes), stream,
         p);
}

template <bool kByWarps, class Tile>
void start(const SkinnyProduct& m, int slab_rows, const GpuShape& gpu, const TensorMaps& maps, SkinnyParams& p,
           cudaStream_t stream) {
  if (m.join == Join::add) return start<kByWarps, Tile, Join::add>(m, slab_rows, gpu, maps, p, stream);
  start<kByWarps, Tile, Join::store>(m, slab_rows, gpu, maps, p, stream);
}

template <bool kByWarps, int kRows>
void start(const SkinnyProduct& m, const GpuShape& gpu, const TensorMaps& maps, SkinnyParams& p, cudaStream_t stream) {
  const SkinnyShape shape = skinny_shape(m.join, m.n, gpu.n_sms);
  using Pair = SkinnyTile<2, 2, kRows, 1>;
  if (m.join == Join::silu) return start<kByWarps, Pair, Join::silu>(m, shape.slab_rows, gpu, maps, p, stream);
  if (shape.kind == SkinnyShape::Kind::pair) return start<kByWarps, Pair>(m, shape.slab_rows, gpu, maps, p, stream);
  if (shape.kind == SkinnyShape::Kind::single)
    return start<kByWarps, SkinnyTile<1, 2, kRows, 1>>(m, shape.slab_rows, gpu, maps, p, stream);
  start<kByWarps, SkinnyTile<1, 2, kRows, 2>>(m, shape.slab_rows, gpu, maps, p, stream);
}

template <bool kByWarps>
void start(const SkinnyProduct& m, const GpuShape& gpu, const TensorMaps& maps, cudaStream_t stream) {
  SkinnyParams p{};
  p.rows = m.rows;
  p.n = m.n;
  p.bias = m.bias;
  p.bias_is_bf16 = m.bias_is_bf16;
  p.out = m.out;
  p.out_stride = m.out_stride;
  p.twin = m.twin;
  p.k = m.k;
  p.before = m.before;
  p.behind = m.behind;
  if (m.rows <= 16) return start<kByWarps, 16>(m, gpu, maps, p, stream);
  if (m.rows <= 32) return start<kByWarps, 32>(m, gpu, maps, p, stream);
  start<kByWarps, kSkinnyRows>(m, gpu, maps, p, stream);
}

}  // namespace firstlight::cuda