// SPDX-License-Identifier: Apache-2.0
// Products with weights: own kernels to 64 rows (skinny_cuda.cuh), above cuBLASLt; where that is not there, own kernels
// 64 rows at a time; and plain ones for f32 weights and odd shapes.
// Products with bf16 weights want activations as bf16: norms, attention and SiLU leave such a copy beside their result.
#include <algorithm>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

using cuda::Join;

namespace {

void check_shapes(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out, int64_t n) {
  const bool ok = x.cols == w.cols && out.cols == n && out.rows == x.rows && x.stride >= x.cols &&
                  out.stride >= out.cols && (!bias || !bias->data || bias->rows * bias->cols == w.rows);
  if (!ok) {
    throw Error(ErrorKind::bug, str("product of x [", x.rows, ", ", x.cols, "] and w [", w.rows, ", ", w.cols,
                                    "] into [", out.rows, ", ", out.cols, "]: the shapes do not fit"));
  }
  for (const Weight* weight : {&w, bias}) {
    if (weight && weight->dtype != DType::bf16 && weight->dtype != DType::f32) {
      throw Error(ErrorKind::unsupported,
                  str("the CUDA back end computes with bf16 and f32 weights, found ", to_string(weight->dtype)));
    }
  }
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

__global__ void round_kernel(Matrix<const float> x, __nv_bfloat16* out) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const float* from = x.data + int64_t{blockIdx.x} * x.stride;
  __nv_bfloat16* to = out + int64_t{blockIdx.x} * x.cols;
  for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) to[c] = __float2bfloat16_rn(from[c]);
}

__device__ float bias_at(const void* bias, bool is_bf16, int64_t i) {
  if (!bias) return 0;
  return is_bf16 ? cuda::widen(static_cast<const __nv_bfloat16*>(bias)[i]) : static_cast<const float*>(bias)[i];
}

__global__ void add_bias_kernel(const void* bias, bool is_bf16, Matrix<float> out) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  float* row = out.data + int64_t{blockIdx.x} * out.stride;
  for (int64_t c = threadIdx.x; c < out.cols; c += blockDim.x) row[c] += bias_at(bias, is_bf16, c);
}

/// product [rows, 2 n]: gates, then ups.
__global__ void silu_kernel(const float* product, const void* bias, bool is_bf16, Matrix<float> out,
                            __nv_bfloat16* twin) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const int64_t row = blockIdx.x, n = out.cols;
  const float *gates = product + row * 2 * n, *ups = gates + n;
  const int64_t begin = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * 4;
  for (int64_t c = begin; c < min(n, begin + 4); ++c) {
    const float gate = gates[c] + bias_at(bias, is_bf16, c), up = ups[c] + bias_at(bias, is_bf16, n + c);
    const float value = gate / (1 + __expf(-gate)) * up;
    out.data[row * out.stride + c] = value;
    if (twin) twin[row * n + c] = __float2bfloat16_rn(value);
  }
}

/// As many as any product that may wait reads: a batch that grows by one does not forget what was recorded.
int64_t twin_rows(int64_t rows) { return std::max<int64_t>(rows, cuda::kSkinnyRows); }

}  // namespace

__nv_bfloat16* CudaOps::twin_for(Matrix<float> out) {
  written(out);
  if (out.cols % 8 != 0) return nullptr;
  twin_at_ ^= 1;  // who writes it may be reading the last one
  reserve(twin_memory_[twin_at_], twin_rows(out.rows) * out.cols * 2);
  twin_ = {out.data, out.rows, out.cols, out.stride};
  return twin_memory_[twin_at_].as<__nv_bfloat16>();
}

void CudaOps::written(Matrix<float> out) {
  queue_.written(out);
  if (!twin_.of || !out.data) return;
  const float* twin_end = twin_.of + twin_.rows * twin_.stride;
  if (out.data < twin_end && twin_.of < out.data + out.rows * out.stride) twin_ = {};
}

const __nv_bfloat16* CudaOps::rounded(Matrix<const float> x) {
  const auto is_there = [&] {
    return twin_.of == x.data && twin_.rows == x.rows && twin_.cols == x.cols && twin_.stride == x.stride;
  };
  if (!is_there()) unfold_norm(x.data);
  if (is_there()) return twin_memory_[twin_at_].as<__nv_bfloat16>();
  queue_.require_written(x.data);
  launch_waiting();
  twin_ = {};
  cuda::DeviceScratch& there = twin_memory_[twin_at_];
  reserve(there, twin_rows(x.rows) * x.cols * 2);
  __nv_bfloat16* memory = there.as<__nv_bfloat16>();
  cuda::launch("round", round_kernel, dim3(static_cast<unsigned>(x.rows)), 256, 0, stream_, x, memory);
  twin_ = {x.data, x.rows, x.cols, x.stride};
  return memory;
}

void CudaOps::launch_waiting() {
  if (rope_.waiting) launch_rope(*std::exchange(rope_.waiting, std::nullopt));
  if (!queue_.waiting) return;
  const cuda::SkinnyProduct product = *std::exchange(queue_.waiting, std::nullopt);
  skinny_->multiply(product, stream_);
}

bool CudaOps::fold_norm(const cuda::NormOp& norm) {
  if (!queue_.can_fold(norm)) return false;
  cuda::SkinnyProduct& last = *queue_.waiting;
  const int n_squares = skinny_->n_squares(last.n);
  reserve(queue_.squares, int64_t{n_squares} * cuda::kSkinnyRows * 4);
  last.twin = twin_for(norm.out);
  last.behind = {static_cast<const __nv_bfloat16*>(norm.weight.data), queue_.squares.as<float>(), n_squares, norm.eps};
  queue_.folded = {norm, last.behind};
  return true;
}

void CudaOps::unfold_norm(const float* x) {
  if (!queue_.has_folded(x)) return;
  if (queue_.folded->stale) throw Error(ErrorKind::bug, "a norm is read of an x that has been written over");
  const cuda::NormOp norm = queue_.folded->norm;
  launch_waiting();
  launch_norm(norm);  // it is folded no more: its result is written
}

bool CudaOps::multiply_skinny(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out,
                              Join join) {
  const bool fits = w.dtype == DType::bf16 && x.cols % 8 == 0 && aligned(w.data) && skinny_->why_not().empty();
  if (!fits) return false;
  const bool may_wait = folds_norms() && x.rows <= cuda::kSkinnyRows;
  if (!may_wait) unfold_norm(x.data);
  const __nv_bfloat16* rows = rounded(x);
  const cuda::SkinnyNorm before = queue_.has_folded(x.data) ? queue_.folded->before : cuda::SkinnyNorm{};
  cuda::SkinnyProduct product{.x = rows,
                              .rows = static_cast<int>(x.rows),
                              .w = w.data,
                              .bias = bias ? bias->data : nullptr,
                              .bias_is_bf16 = bias && bias->dtype == DType::bf16,
                              .n = static_cast<int>(out.cols),
                              .k = static_cast<int>(w.cols),
                              .join = join,
                              .out = out.data,
                              .out_stride = out.stride,
                              .twin = join == Join::silu ? twin_for(out) : nullptr,
                              .before = before,
                              .behind = {}};
  // Of gates and ups the product behind reads the copy alone: 1.8 MB less written at 32 rows of Llama-3.1-8B's shapes.
  if (queue_.waiting && queue_.waiting->join == Join::silu && queue_.waiting->twin == rows) {
    queue_.unwritten = std::exchange(queue_.waiting->out, nullptr);
  }
  launch_waiting();
  if (may_wait) {
    queue_.waiting = product;
  } else {
    for (int64_t row = 0; row < x.rows; row += cuda::kSkinnyRows) {
      cuda::SkinnyProduct piece = product;
      piece.rows = static_cast<int>(std::min<int64_t>(cuda::kSkinnyRows, x.rows - row));
      piece.x += row * x.cols;
      piece.out += row * out.stride;
      if (piece.twin) piece.twin += row * out.cols;
      skinny_->multiply(piece, stream_);
    }
  }
  if (join != Join::silu) written(out);
  return true;
}

bool CudaOps::multiply_by_library(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out,
                                  Join join) {
  const bool fits = w.dtype == DType::bf16 && x.cols % 8 == 0 && aligned(w.data) && aligned(out.data) &&
                    out.stride % 4 == 0 && w.rows % 8 == 0;
  if (!fits) return false;
  if (!cublaslt_.ready()) {
    if (why_no_library_.empty()) {
      why_no_library_ = cublaslt_.why();
      compose_name();
    }
    return false;
  }
  unfold_norm(x.data);
  launch_waiting();
  if (join == Join::silu) reserve(products_, x.rows * w.rows * 4);
  const __nv_bfloat16* rows = rounded(x);
  const bool is_silu = join == Join::silu;
  cublaslt_.multiply({.x = rows,
                      .x_stride = x.cols,
                      .rows = x.rows,
                      .w = w.data,
                      .n = w.rows,
                      .k = w.cols,
                      .out = is_silu ? products_.as<float>() : out.data,
                      .out_stride = is_silu ? w.rows : out.stride,
                      .add = join == Join::add},
                     stream_);
  const void* biases = bias ? bias->data : nullptr;
  const bool is_bf16 = bias && bias->dtype == DType::bf16;
  const dim3 grid(static_cast<unsigned>(out.rows));
  if (is_silu) {
    constexpr int64_t kColumns = 256 * 4;  // of a block
    __nv_bfloat16* twin = twin_for(out);
    const dim3 blocks(static_cast<unsigned>(out.rows), static_cast<unsigned>((out.cols + kColumns - 1) / kColumns));
    cuda::launch("silu", silu_kernel, blocks, 256, 0, stream_, products_.as<float>(), biases, is_bf16, out, twin);
    return true;
  }
  if (biases) cuda::launch("bias", add_bias_kernel, grid, 256, 0, stream_, biases, is_bf16, out);
  written(out);
  return true;
}

void CudaOps::multiply(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out, Join join) {
  const int64_t n = join == Join::silu ? w.rows / 2 : w.rows;
  check_shapes(x, w, bias, out, n);
  if (x.rows == 0 || n == 0) return;
  if (x.rows <= cuda::kSkinnyRows && multiply_skinny(x, w, bias, out, join)) return;
  if (multiply_by_library(x, w, bias, out, join) || multiply_skinny(x, w, bias, out, join)) return;
  unfold_norm(x.data);
  queue_.require_written(x.data);
  launch_waiting();
  cuda::matmul_plain({.x = x.data,
                      .x_stride = x.stride,
                      .w = w.data,
                      .bias = bias ? bias->data : nullptr,
                      .w_dtype = w.dtype,
                      .bias_dtype = bias ? bias->dtype : DType::bf16,
                      .rows = static_cast<int>(x.rows),
                      .n = static_cast<int>(n),
                      .k = static_cast<int>(w.cols),
                      .out = out.data,
                      .out_stride = out.stride},
                     join, stream_);
  written(out);
}

void CudaOps::matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) {
  multiply(x, w, bias, out, Join::store);
}

void CudaOps::matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) {
  multiply(x, w, bias, out, Join::add);
}

void CudaOps::gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) {
  if (gate_up.rows % 2 != 0) {
    throw Error(ErrorKind::bug, str("gate and up stacked must have an even number of rows, found ", gate_up.rows));
  }
  multiply(x, gate_up, bias, out, Join::silu);
}

}  // namespace firstlight
