// SPDX-License-Identifier: Apache-2.0
// out [rows ≤ 8, n] = x wᵀ by tensor cores: 16 rows of w are the product's 16 x 16 operand just as a lane's 16-byte
// loads bring them, since the sum over k may take k in any order as long as x takes the same. x goes in as two bf16
// terms, so that it keeps 16 bits of its fraction. Its 8 columns are the 8 rows of x, always computed alike, so a row's
// bits do not depend on the others. A block of 8 warps shares a tile of 16 rows of w out along k: 1,024 of k at a time,
// 2 KiB of each row, and a warp has 8 loads of 16 bytes a lane in flight for the next part while it multiplies this
// one.
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/matvec_cuda.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kTile = 16;  // rows of w
constexpr int kStep = 32;  // of k: 16 bytes a lane, four lanes a row

struct Params {
  MatvecParams p;
  int n_tiles, k_shared;  // k that fits into shared memory at a time, a multiple of the block's span
};

/// Each warp takes kSteps steps at a time of kParts tiles: gate and up, or, if kWide, neighbours. Steps decide in which
/// order terms are added, so all kernels of one product have as many.
template <int kParts, bool kWide>
struct Shape {
  static constexpr int kSteps = kParts == 2 && !kWide ? 2 : 4;
  static constexpr int kSpan = kWarps * kSteps * kStep;  // of k, for the whole block
  uint4 weights[kSteps][kParts][2];

  /// Row r of a part; its index in out is tile_row() where that is below n.
  static __device__ __forceinline__ int tile_row(int tile, int part, int r) {
    return (kWide ? tile * kParts + part : tile) * kTile + r;
  }
  static __device__ __forceinline__ const __nv_bfloat16* at(const Params& params, int part, int row, int k) {
    return static_cast<const __nv_bfloat16*>(params.p.w) + (int64_t{kWide ? 0 : part} * params.p.n + row) * params.p.k +
           k;
  }

  __device__ __forceinline__ void load(const Params& params, int tile, int k0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = k0 + (warp * kSteps + s) * kStep + lane % 4 * 8;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = tile_row(tile, part, half * 8 + lane / 4);
          const bool there = row < params.p.n && k < params.p.k;
          weights[s][part][half] = there ? load_stream(at(params, part, row, k)) : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }
};

/// x's two terms lie as [row][k / 8][high 16 bytes, low 16 bytes], rows 64 bytes apart in banks.
__device__ __forceinline__ int shared_pitch(int k_shared) { return k_shared * 4 + 64; }

__device__ void stage_x(const Params& params, int k_begin, std::byte* shared) {
  const MatvecParams& p = params.p;
  const int pitch = shared_pitch(params.k_shared), eighths = params.k_shared / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < p.rows * eighths; i += kWarps * 32) {
    const int row = i / eighths, eighth = i % eighths, k = k_begin + eighth * 8;
    uint4 high = make_uint4(0, 0, 0, 0), low = high;
    if (k < p.k) {
      const float4* x = reinterpret_cast<const float4*>(p.x + row * p.x_stride + k);
      const float4 a = x[0], b = x[1];
      split(a.x, a.y, high.x, low.x);
      split(a.z, a.w, high.y, low.y);
      split(b.x, b.y, high.z, low.z);
      split(b.z, b.w, high.w, low.w);
    }
    uint4* to = reinterpret_cast<uint4*>(shared + row * pitch + eighth * 32);
    to[0] = high;
    to[1] = low;
  }
}

template <int kParts, bool kWide>
__device__ __forceinline__ void multiply(const Params& params, const Shape<kParts, kWide>& w, const std::byte* shared,
                                         int k_within, float (&sums)[kParts][2][4]) {
  using S = Shape<kParts, kWide>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
  const std::byte* x_row = shared + row * shared_pitch(params.k_shared);
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) {
    const int k = k_within + (warp * S::kSteps + s) * kStep + lane % 4 * 8;
    uint4 high = make_uint4(0, 0, 0, 0), low = high;
    if (row < params.p.rows) {
      const uint4* x = reinterpret_cast<const uint4*>(x_row + k * 4);
      high = x[0];
      low = x[1];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint4 a = w.weights[s][part][0], b = w.weights[s][part][1];
      mma(sums[part][0], a.x, b.x, a.y, b.y, high.x, high.y);
      mma(sums[part][1], a.z, b.z, a.w, b.w, high.z, high.w);
      mma(sums[part][0], a.x, b.x, a.y, b.y, low.x, low.y);
      mma(sums[part][1], a.z, b.z, a.w, b.w, low.z, low.w);
    }
  }
}

__device__ __forceinline__ float bias_of(const MatvecParams& p, int64_t i) {
  if (!p.bias) return 0;
  return p.bias_dtype == DType::bf16 ? widen(static_cast<const __nv_bfloat16*>(p.bias)[i])
                                     : static_cast<const float*>(p.bias)[i];
}

/// Adds up the warps' sums, always in the same order, and joins them to out.
template <int kParts, bool kWide, Join kJoin>
__device__ void finish(const Params& params, int tile, const float (&sums)[kParts][2][4],
                       float (*shared)[kParts][kTile * kMatvecRows]) {
  const MatvecParams& p = params.p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      shared[warp][part][column * kTile + row] = sums[part][0][i] + sums[part][1][i];
    }
  }
  __syncthreads();
  // 128 threads take the 16 x 8 values; of neighbours, the other 128 take the second tile's.
  const int within = static_cast<int>(threadIdx.x) % (kTile * kMatvecRows),
            second = static_cast<int>(threadIdx.x) / (kTile * kMatvecRows);
  const int column = within / kTile, at = Shape<kParts, kWide>::tile_row(tile, kWide ? second : 0, within % kTile);
  if (column >= p.rows || at >= p.n || (!kWide && second > 0)) return;
  float total[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (kWide && part > 0) break;
    total[part] = bias_of(p, int64_t{part} * p.n + at);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total[part] += shared[w][kWide ? second : part][within];
  }
  float* out = p.out + column * p.out_stride + at;
  if constexpr (kJoin == Join::store) *out = total[0];
  if constexpr (kJoin == Join::add) *out += total[0];
  if constexpr (kJoin == Join::silu) *out = total[0] / (1 + __expf(-total[0])) * total[kParts - 1];
}

template <int kParts, bool kWide, Join kJoin>
__global__ void __launch_bounds__(kWarps * 32, kWide ? 1 : 2) matvec_kernel(const __grid_constant__ Params params) {
  using S = Shape<kParts, kWide>;
  extern __shared__ uint4 x_shared[];
  __shared__ float sums_shared[2][kWarps][kParts][kTile * kMatvecRows];
  std::byte* shared = reinterpret_cast<std::byte*>(x_shared);
  const int k = params.p.k;
  S now, next;
  int tile = static_cast<int>(blockIdx.x);
  now.load(params, tile, 0);  // weights are nobody's output: no need to wait
  wait_for_predecessor();
  let_successor_start();
  const bool once = params.k_shared >= k;
  if (once) {
    stage_x(params, 0, shared);
    __syncthreads();
  }
  for (int turn = 0; tile < params.n_tiles; turn ^= 1) {
    float sums[kParts][2][4] = {};
    const int next_tile = tile + static_cast<int>(gridDim.x);
    for (int k0 = 0; k0 < k; k0 += S::kSpan) {
      if (!once && k0 % params.k_shared == 0) {
        __syncthreads();
        stage_x(params, k0, shared);
        __syncthreads();
      }
      const bool last = k0 + S::kSpan >= k;
      next.load(params, last ? next_tile : tile, last ? 0 : k0 + S::kSpan);  // past the end of n: zeros
      multiply(params, now, shared, once ? k0 : k0 % params.k_shared, sums);
      now = next;
    }
    finish<kParts, kWide, kJoin>(params, tile, sums, sums_shared[turn]);
    tile = next_tile;
  }
}

template <int kParts, bool kWide, Join kJoin>
void start(const MatvecParams& p, const GpuShape& gpu, cudaStream_t stream) {
  constexpr int kSpan = Shape<kParts, kWide>::kSpan, kRows = kWide ? kParts * kTile : kTile;
  Params params{p, (p.n + kRows - 1) / kRows, 0};
  const int static_bytes = 2 * kWarps * kParts * kTile * kMatvecRows * 4;
  // All of k if it fits, else as much as does.
  const int all = (p.k + kSpan - 1) / kSpan * kSpan;
  const int fits = ((gpu.shared_bytes - static_bytes) / p.rows - 64) / 4 / kSpan * kSpan;
  params.k_shared = all <= fits ? all : fits;
  const int bytes = p.rows * (params.k_shared * 4 + 64);
  const auto kernel = matvec_kernel<kParts, kWide, kJoin>;
  if (bytes > 32 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_bytes - static_bytes),
          "shared memory of matvec");
  }
  const int blocks_per_sm = !kWide && 2 * (bytes + static_bytes + 1024) <= gpu.shared_bytes ? 2 : 1;
  const int grid = min(params.n_tiles, gpu.n_sms * blocks_per_sm);
  launch("matvec", kernel, dim3(static_cast<unsigned>(grid)), kWarps * 32, static_cast<size_t>(bytes), stream, params);
}

/// From 4 rows on x takes so much of shared memory that one block fills a multiprocessor: it takes two tiles at a time.
template <Join kJoin>
void start_plain(const MatvecParams& p, const GpuShape& gpu, cudaStream_t stream) {
  p.rows < 4 ? start<1, false, kJoin>(p, gpu, stream) : start<2, true, kJoin>(p, gpu, stream);
}

}  // namespace

void matvec(const MatvecParams& params, Join join, const GpuShape& gpu, cudaStream_t stream) {
  switch (join) {
    case Join::store:
      return start_plain<Join::store>(params, gpu, stream);
    case Join::add:
      return start_plain<Join::add>(params, gpu, stream);
    case Join::silu:
      return start<2, false, Join::silu>(params, gpu, stream);
  }
}

}  // namespace firstlight::cuda
