// SPDX-License-Identifier: Apache-2.0
// The warpgroup that empties a skinny product's ring: by Hopper's own instructions or by warps.
#pragma once
#include "firstlight/ops/skinny_shared_cuda.cuh"

namespace firstlight::cuda {

/// A warp of it.
template <class Tile>
struct SkinnyMultiplier {
  const SkinnyParams& p;
  const SkinnyShare<Tile>& share;
  const SkinnyRing<Tile>& ring;
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void release(int s) {
    if (threadIdx.x % 32 == 0) ring.empty[s].arrive();
  }
  /// Adds a tile's products with the block's part of k. A stage is given back when the next one's are on their way.
  __device__ __forceinline__ void multiply(LaneSums<Tile>& sums) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    int before = -1;
#pragma unroll 1
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
#else
    __trap();  // never launched
#endif
  }
  /// The same without Hopper's own instructions: sums lie in lanes as those leave them.
  __device__ __forceinline__ void multiply_by_warps(LaneSums<Tile>& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int w_row = warp * 16 + lane % 16, x_row = lane % 8 + lane / 16 * 8;
    // 16-byte pieces of a row are dealt by the row: swizzled by 128 bytes.
    const auto piece = [](int row, int i) { return static_cast<uint32_t>(row * kBoxRowBytes + (i ^ row % 8) * 16); };
#pragma unroll 1
    for (int step = share.begin; step < share.end; ++step) {
      ring.full[stage].wait(parity);
#pragma unroll
      for (int c = 0; c < Tile::kDepth * 4; ++c) {
        uint32_t x[Tile::kRows / 16][4];
#pragma unroll
        for (int j = 0; j < Tile::kRows / 16; ++j) {
          load_matrices(x[j], ring.x_box(stage, c / 4) + piece(j * 16 + x_row, c % 4 * 2 + lane / 8 % 2));
        }
#pragma unroll
        for (int s = 0; s < Tile::kSlabs; ++s) {
          uint32_t w[4];
          load_matrices(w, ring.w_box(stage, c / 4, s) + piece(w_row, c % 4 * 2 + lane / 16));
#pragma unroll
          for (int j = 0; j < Tile::kRows / 8; ++j) {
            float(&sum)[4] = *reinterpret_cast<float(*)[4]>(&sums[s][4 * j]);
            mma(sum, w[0], w[1], w[2], w[3], x[j / 2][j % 2 * 2], x[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
      wgmma_done(sums);  // what was read of the stage has come
      __syncwarp();
      release(stage);
      if (++stage == p.n_stages) stage = 0, parity ^= 1;
    }
  }
};

}  // namespace firstlight::cuda
