// SPDX-License-Identifier: Apache-2.0
// A block a row. Bound by latency when rows are few: 1,024 threads take a row of 4,096 in one load each.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace {

template <class T>
__global__ void __launch_bounds__(1024) rms_norm_kernel(Matrix<const float> x, const T* weight, float eps,
                                                        Matrix<float> out, __nv_bfloat16* twin, bool ahead) {
  __shared__ float shared[32];
  if (ahead) cuda::let_successor_start();
  cuda::wait_for_predecessor();
  if (!ahead) cuda::let_successor_start();
  const float* from = x.data + int64_t{blockIdx.x} * x.stride;
  float* to = out.data + int64_t{blockIdx.x} * out.stride;
  const int n = static_cast<int>(x.cols), threads = static_cast<int>(blockDim.x);
  float squares = 0;
  for (int c = static_cast<int>(threadIdx.x); c < n; c += threads) squares += from[c] * from[c];
  const float scale = rsqrtf(cuda::block_sum(squares, shared) / static_cast<float>(n) + eps);
  for (int c = static_cast<int>(threadIdx.x); c < n; c += threads) {
    const float value = from[c] * scale * cuda::widen(weight[c]);
    to[c] = value;
    if (twin) twin[int64_t{blockIdx.x} * n + c] = __float2bfloat16_rn(value);
  }
}

template <class T>
__global__ void __launch_bounds__(1024) rms_norm_quads_kernel(Matrix<const float> x, const T* weight, float eps,
                                                              Matrix<float> out, __nv_bfloat16* twin, bool ahead) {
  __shared__ float shared[32];
  const int quads = static_cast<int>(x.cols) / 4, threads = static_cast<int>(blockDim.x);
  if (ahead) cuda::let_successor_start();
  cuda::wait_for_predecessor();
  if (!ahead) cuda::let_successor_start();
  const float4* from = reinterpret_cast<const float4*>(x.data + int64_t{blockIdx.x} * x.stride);
  float4* to = reinterpret_cast<float4*>(out.data + int64_t{blockIdx.x} * out.stride);
  float squares = 0;
  for (int c = static_cast<int>(threadIdx.x); c < quads; c += threads) {
    const float4 v = from[c];
    squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
  }
  const float scale = rsqrtf(cuda::block_sum(squares, shared) / static_cast<float>(x.cols) + eps);
  for (int c = static_cast<int>(threadIdx.x); c < quads; c += threads) {
    float4 v = from[c];
    v.x = v.x * scale * cuda::widen(weight[4 * c]);
    v.y = v.y * scale * cuda::widen(weight[4 * c + 1]);
    v.z = v.z * scale * cuda::widen(weight[4 * c + 2]);
    v.w = v.w * scale * cuda::widen(weight[4 * c + 3]);
    to[c] = v;
    if (twin) {
      reinterpret_cast<uint2*>(twin + int64_t{blockIdx.x} * x.cols)[c] =
          make_uint2(cuda::pack(v.x, v.y), cuda::pack(v.z, v.w));
    }
  }
}

bool in_quads(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

template <class T>
void start(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out, __nv_bfloat16* twin, bool ahead,
           cudaStream_t stream) {
  const bool quads = x.cols % 4 == 0 && in_quads(x.data, x.stride) && in_quads(out.data, out.stride);
  const int64_t wanted = quads ? x.cols / 4 : x.cols;
  const int threads = static_cast<int>(std::clamp<int64_t>((wanted + 31) / 32 * 32, 32, 1024));
  cuda::launch("rms_norm", quads ? rms_norm_quads_kernel<T> : rms_norm_kernel<T>, dim3(static_cast<unsigned>(x.rows)),
               threads, 0, stream, x, static_cast<const T*>(weight.data), eps, out, twin, ahead);
}

}  // namespace

void CudaOps::rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) {
  if (weight.rows * weight.cols != x.cols || out.rows != x.rows || out.cols != x.cols) {
    throw Error(ErrorKind::bug, str("norm of [", x.rows, ", ", x.cols, "] with ", weight.rows * weight.cols,
                                    " weights into [", out.rows, ", ", out.cols, "]"));
  }
  if (weight.dtype != DType::bf16 && weight.dtype != DType::f32) {
    throw Error(ErrorKind::unsupported,
                str("the CUDA back end computes with bf16 and f32 weights, found ", to_string(weight.dtype)));
  }
  if (x.rows == 0) return;
  if (fold_norm({x, weight, eps, out})) return;
  launch_waiting();
  launch_norm({x, weight, eps, out});
}

void CudaOps::launch_norm(const cuda::NormOp& norm) {
  const auto& [x, weight, eps, out] = norm;
  __nv_bfloat16* twin = twin_for(out);
  // A product of many rows asks for weights before it waits, and may do so before the norm's own wait is over. Not
  // where ranks share a GPU: its blocks would take the room of those that a sum in front of the norm waits for.
  const bool ahead = twin && options_.n_sharing == 1;
  weight.dtype == DType::bf16 ? start<__nv_bfloat16>(x, weight, eps, out, twin, ahead, stream_)
                              : start<float>(x, weight, eps, out, twin, ahead, stream_);
}

}  // namespace firstlight
