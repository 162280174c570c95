// SPDX-License-Identifier: Apache-2.0
// The kernel: a warp that fetches, and a warpgroup that multiplies, meets the cluster's others and writes.
#pragma once
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/skinny_cuda.cuh"
#include "firstlight/ops/skinny_shape_cuda.cuh"
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

/// A warp of the warpgroup that empties the ring.
template <class Tile, Join kJoin, bool kByWarps>
struct Consumer {
  static constexpr int kPasses = Tile::kOwnRows / 8;
  const SkinnyParams& p;
  const SkinnyShare<Tile>& share;
  const SkinnyRing<Tile>& ring;
  SkinnyShared<Tile, kJoin>& shared;
  int stage = 0;
  unsigned parity = 0;

  /// A warp's: what each row's sums are multiplied by.
  __device__ static __forceinline__ void find_scales(const SkinnyParams& p, float* scales) {
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
  __device__ static __forceinline__ void meet_others() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }
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
  /// Gives each sum to the block that finishes it. In a cluster once: a second tile would write over sums that a slower
  /// block has yet to read.
  __device__ __forceinline__ void hand_over(const LaneSums<Tile>& sums) {
    if constexpr (Tile::kSplit > 1) {
      cluster_wait();
    } else {
      meet_others();  // all have read the last tile's
    }
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int to = 0; to < Tile::kSplit; ++to) {
      float* const at = &shared.sums[share.rank][0][lane % 4 * 2][warp * 16 + lane / 4];
      const uint32_t there = Tile::kSplit > 1 ? address_at(shared_address(at), to) : 0;
#pragma unroll
      for (int s = 0; s < Tile::kSlabs; ++s) {
#pragma unroll
        for (int j = 0; j < Tile::kOwnSums; ++j) {
          const int row = j / 4 * 8 + j % 2, i = (s * Tile::kOwnRows + row) * SkinnyShared<Tile, kJoin>::kPitch + j % 4 / 2 * 8;
          const float sum = sums[s][to * Tile::kOwnSums + j];
          if constexpr (Tile::kSplit > 1) {
            store_at(there + static_cast<uint32_t>(i) * sizeof(float), sum);
          } else {
            at[i] = sum;
          }
        }
      }
    }
    if constexpr (Tile::kSplit > 1) {
      cluster_arrive();
      cluster_wait();
    } else {
      meet_others();
    }
  }

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
  /// silu(gates) * ups, the slabs in turn.
  __device__ __forceinline__ void finish_silu(int tile) const {
#pragma unroll
    for (int s = 0; s + 1 < Tile::kSlabs; s += 2) {
      const int c = column(tile, s, 2);
      if (c >= p.n) continue;
      Four gate_bias{}, up_bias{};
      if (p.bias) each(c, [&](int e) { gate_bias[e] = bias_at(c + e), up_bias[e] = bias_at(p.n + c + e); });
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass) {
        if (row(pass) >= p.rows) break;
        Four gates, values;
        take(s, pass, gates);
        take(s + 1, pass, values);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float gate = gates[e] + gate_bias[e];
          values[e] = gate / (1 + __expf(-gate)) * (values[e] + up_bias[e]);
        }
        write(row(pass), c, values);
        if (p.twin) write_twin(row(pass), c, values);
      }
    }
  }
  /// What sums are added to, asked for ahead of them.
  __device__ __forceinline__ void ask(int tile) {
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
      const int c = column(tile, s, 1);
#pragma unroll 1
      for (int pass = 0; pass < kPasses && row(pass) < p.rows && c < p.n; ++pass) {
        float* const to = &shared.old[s][own_row(pass)][in_slab()];
        const float* const from = p.out + row(pass) * p.out_stride + c;
        if (p.fours) {
          copy_async(shared_address(to), from, true);
        } else {
          each(c, [&](int e) { to[e] = from[e]; });
        }
      }
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void finish(int tile) const {
    Four weight[Tile::kSlabs] = {}, bias[Tile::kSlabs] = {};
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
      const int c = column(tile, s, 1);
      if (p.bias) each(c, [&](int e) { bias[s][e] = bias_at(c + e); });
      if (p.behind.weight) each(c, [&](int e) { weight[s][e] = widen(p.behind.weight[c + e]); });
    }
    if (kJoin == Join::add) copy_async_wait<0>();  // a thread reads what it has asked for
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
      float squares = 0;
#pragma unroll
      for (int s = 0; s < Tile::kSlabs; ++s) {
        const int c = column(tile, s, 1);
        if (row(pass) >= p.rows || c >= p.n) continue;
        Four x;
        take(s, pass, x);
        float4 old{};
        if constexpr (kJoin == Join::add) {
          old = *reinterpret_cast<const float4*>(&shared.old[s][own_row(pass)][in_slab()]);
        }
        x[0] += old.x + bias[s][0], x[1] += old.y + bias[s][1], x[2] += old.z + bias[s][2], x[3] += old.w + bias[s][3];
        write(row(pass), c, x);
        if (!p.behind.weight) continue;
        each(c, [&](int e) { squares += x[e] * x[e]; });
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] *= weight[s][e];
        write_twin(row(pass), c, x);
      }
      if (!p.behind.weight) continue;
#pragma unroll
      for (int far = 1; far < 16; far *= 2) squares += __shfl_xor_sync(0xffffffffu, squares, far);
      if (threadIdx.x % 16 == 0) p.behind.squares[tile * kSkinnyRows + row(pass)] = squares;
    }
  }
  __device__ __forceinline__ void consume(int tile) {
    LaneSums<Tile> sums = {};
    if constexpr (kJoin == Join::add) ask(tile);
    if constexpr (kByWarps) {
      multiply_by_warps(sums);
    } else {
      multiply(sums);
    }
    hand_over(sums);
    if (p.before.weight) shared.scaled.wait(0);
    if constexpr (kJoin == Join::silu) {
      finish_silu(tile);
    } else {
      finish(tile);
    }
  }
};

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
      Consumer<Tile, kJoin, kByWarps>::find_scales(p, shared.scales);
      __syncwarp();
      if (threadIdx.x % 32 == 0) shared.scaled.arrive();
    }
  } else if (threadIdx.x < kConsumers) {
    wait_for_predecessor();
    let_successor_start();
    Consumer<Tile, kJoin, kByWarps> consumer{p, share, ring, shared};
#pragma unroll 1
    for (int tile = share.first_tile; tile < p.n_tiles; tile += share.tile_step) consumer.consume(tile);
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
  if (shape.kind == SkinnyShape::Kind::single) return start<kByWarps, SkinnyTile<1, 2, kRows, 1>>(m, shape.slab_rows, gpu, maps, p, stream);
  start<kByWarps, SkinnyTile<1, 2, kRows, 2>>(m, shape.slab_rows, gpu, maps, p, stream);
}

template <bool kByWarps>
void start(const SkinnyProduct& m, const GpuShape& gpu, const TensorMaps& maps, cudaStream_t stream) {
  SkinnyParams p{};
  p.rows = m.rows;
  p.n = m.n;
  p.up_row = m.n;
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
