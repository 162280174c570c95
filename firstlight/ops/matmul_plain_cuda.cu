// SPDX-License-Identifier: Apache-2.0
// The product that works for every shape: a warp a column of out, 8 rows of x at a time, all in f32. For f32 weights,
// and for bf16 ones that the fast kernels cannot take.
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/product_cuda.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kRows = 8;

template <class T>
__device__ void dot(const ProductParams& p, int64_t row, int n_rows, int64_t w_row, float (&sums)[kRows]) {
  const T* w = static_cast<const T*>(p.w) + w_row * p.k;
  for (int r = 0; r < kRows; ++r) sums[r] = 0;
  for (int k = static_cast<int>(threadIdx.x) % 32; k < p.k; k += 32) {
    const float weight = widen(w[k]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < n_rows) sums[r] += p.x[(row + r) * p.x_stride + k] * weight;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = warp_sum(sums[r]);
  if (!p.bias) return;
  const float bias = p.bias_dtype == DType::bf16 ? widen(static_cast<const __nv_bfloat16*>(p.bias)[w_row])
                                                 : static_cast<const float*>(p.bias)[w_row];
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] += bias;
}

template <class T>
__global__ void matmul_plain_kernel(const __grid_constant__ ProductParams p, Join join) {
  wait_for_predecessor();
  let_successor_start();
  const int column = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (column >= p.n) return;
  for (int64_t row = int64_t{blockIdx.y} * kRows; row < p.rows; row += int64_t{gridDim.y} * kRows) {
    const int n_rows = static_cast<int>(min(int64_t{kRows}, p.rows - row));
    float sums[kRows], ups[kRows];
    dot<T>(p, row, n_rows, column, sums);
    if (join == Join::silu) dot<T>(p, row, n_rows, int64_t{p.n} + column, ups);
    if (threadIdx.x % 32 != 0) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= n_rows) break;
      float* out = p.out + (row + r) * p.out_stride + column;
      if (join == Join::store) *out = sums[r];
      if (join == Join::add) *out += sums[r];
      if (join == Join::silu) *out = sums[r] / (1 + expf(-sums[r])) * ups[r];
    }
  }
}

}  // namespace

void matmul_plain(const ProductParams& p, Join join, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.n + kWarps - 1) / kWarps),
                  static_cast<unsigned>(min((p.rows + kRows - 1) / kRows, 1024)));
  launch("plain matmul", p.w_dtype == DType::bf16 ? matmul_plain_kernel<__nv_bfloat16> : matmul_plain_kernel<float>,
         grid, kWarps * 32, 0, stream, p, join);
}

}  // namespace firstlight::cuda
