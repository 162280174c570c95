// SPDX-License-Identifier: Apache-2.0
// The likeliest token of each row, found where the logits are: 8 bytes a row go to the host, not 4 a token.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace {

constexpr int kThreads = 256;
constexpr int kParts = 64;  // blocks a row: 2,004 of 128,256 logits each

/// Not a number beats all, so that it is seen at the end.
__device__ __forceinline__ bool beats(const Likeliest& a, const Likeliest& b) {
  if (isnan(a.logit) || isnan(b.logit)) return isnan(a.logit) && (!isnan(b.logit) || a.id < b.id);
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

__device__ Likeliest best_of_block(Likeliest best, Likeliest* shared) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    const Likeliest other{__shfl_xor_sync(0xffffffffu, best.logit, lane), __shfl_xor_sync(0xffffffffu, best.id, lane)};
    if (beats(other, best)) best = other;
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
    if (beats(shared[w], best)) best = shared[w];
  }
  return best;
}

__global__ void likeliest_kernel(const float* logits, int n, int first_id, Likeliest* parts) {
  __shared__ Likeliest shared[kThreads / 32];
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const float* row = logits + int64_t{blockIdx.y} * n;
  Likeliest best{-INFINITY, INT32_MAX};
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < n; i += kParts * kThreads) {
    const Likeliest here{row[i], first_id + i};
    if (beats(here, best)) best = here;
  }
  best = best_of_block(best, shared);
  if (threadIdx.x == 0) parts[blockIdx.y * kParts + blockIdx.x] = best;
}

__global__ void likeliest_of_parts_kernel(const Likeliest* parts, Likeliest* out) {
  __shared__ Likeliest shared[kParts / 32];
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  Likeliest best = best_of_block(parts[blockIdx.x * kParts + threadIdx.x], shared);
  if (!isfinite(best.logit)) best.id = -1;
  if (threadIdx.x == 0) out[blockIdx.x] = best;
}

}  // namespace

void CudaOps::likeliest(Matrix<const float> x, const Weight& w, int first_id, std::span<Likeliest> out) {
  if (static_cast<int64_t>(out.size()) != x.rows) {
    throw Error(ErrorKind::bug, str("the likeliest of ", x.rows, " rows into ", out.size()));
  }
  if (x.rows == 0) return;
  store_owns();
  reserve(logits_, std::min(x.rows, cuda::kLogitRows) * w.rows * 4);
  reserve(picks_, (x.rows + cuda::kLogitRows * kParts) * static_cast<int64_t>(sizeof(Likeliest)));
  if (pick_staging_.reserve(out.size_bytes(), stream_)) forget_recordings();
  Likeliest *picks = picks_.as<Likeliest>(), *parts = picks + x.rows;
  for (int64_t row = 0; row < x.rows; row += cuda::kLogitRows) {
    const int64_t n = std::min(cuda::kLogitRows, x.rows - row);
    const Matrix<float> logits{logits_.as<float>(), n, w.rows, w.rows};
    if (w.rows > 0) matmul({x.data + row * x.stride, n, x.cols, x.stride}, w, nullptr, logits);
    launch_waiting();
    cuda::launch("likeliest", likeliest_kernel, dim3(kParts, static_cast<unsigned>(n)), kThreads, 0, stream_,
                 logits_.as<float>(), static_cast<int>(w.rows), first_id, parts);
    cuda::launch("likeliest of parts", likeliest_of_parts_kernel, dim3(static_cast<unsigned>(n)), kParts, 0, stream_,
                 parts, picks + row);
  }
  cuda::check(cudaMemcpyAsync(pick_staging_.as<Likeliest>(), picks, out.size_bytes(), cudaMemcpyDeviceToHost, stream_),
              "fetch the likeliest");
  picked_ = out;
}

}  // namespace firstlight
