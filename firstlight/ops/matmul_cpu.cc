// SPDX-License-Identifier: Apache-2.0
// Products with weights. Two classes of kernels: up to 7 rows (exact products, w read once) and from 8 rows (register
// tiles; with bf16 dot products the activations are rounded to bf16). Within a class a row's result does not depend on
// the rows beside it, on the number of threads or on how the work was cut.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

namespace {

constexpr int64_t kGrain = 48;  // columns: a panel of the matrix kernels, and a multiple of all lane counts
constexpr int64_t kAloneElements = 1 << 15;  // weights that one thread reads in about the time of waking another

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void check_shapes(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out, int64_t n) {
  const bool ok = x.cols == w.cols && out.cols == n && out.rows == x.rows && x.stride >= x.cols &&
                  out.stride >= out.cols && (!bias || !bias->data || bias->rows * bias->cols == w.rows);
  if (!ok) {
    throw Error(ErrorKind::bug, str("product of x [", x.rows, ", ", x.cols, "] and w [", w.rows, ", ", w.cols,
                                    "] into [", out.rows, ", ", out.cols, "]: the shapes do not fit"));
  }
}

}  // namespace

void CpuOps::multiply(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out,
                      Epilogue epilogue) {
  const int64_t n = epilogue == Epilogue::silu ? w.rows / 2 : w.rows;
  check_shapes(x, w, bias, out, n);
  if (w.dtype != DType::bf16 && w.dtype != DType::f32) {
    throw Error(ErrorKind::unsupported,
                str("the CPU back end computes with bf16 and f32 weights, found ", to_string(w.dtype)));
  }
  if (x.rows == 0 || n == 0) return;
  const Product product{.x = x.data,
                        .x_stride = x.stride,
                        .rows = x.rows,
                        .w = w.data,
                        .w_is_bf16 = w.dtype == DType::bf16,
                        .k = w.cols,
                        .n = n,
                        .bias = floats(bias, bias_),
                        .out = out.data,
                        .out_stride = out.stride,
                        .epilogue = epilogue};
  x.rows < kMatrixRows ? multiply_few_rows(product) : multiply_many_rows(product);
}

void CpuOps::multiply_few_rows(Product p) {
  if (reinterpret_cast<uintptr_t>(p.x) % 64 != 0 || p.x_stride % 16 != 0) {  // every load would touch two cache lines
    const int64_t stride = round_up(p.k, 16);
    float* aligned = packed_.reserve<float>(p.rows * stride);
    for (int64_t r = 0; r < p.rows; ++r) std::copy_n(p.x + r * p.x_stride, p.k, aligned + r * stride);
    p.x = aligned;
    p.x_stride = stride;
  }
  // Four pieces a thread: long enough to stream, short enough that a thread which was held up does not hold up the
  // others.
  const int64_t piece = round_up(std::max<int64_t>(1, p.n / (4 * pool_.n_threads())), kGrain);
  share((p.n + piece - 1) / piece, p.n * p.k <= kAloneElements,
        [&](int64_t i, int) { kernels_->matvec(p, i * piece, std::min(p.n, (i + 1) * piece)); });
}

void CpuOps::multiply_many_rows(const Product& p) {
  const int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows;
  const int64_t block_bytes = kernels_->packed_bytes(p);
  std::byte* packed = packed_.reserve<std::byte>(blocks * block_bytes);
  for (Scratch& scratch : of_thread_) scratch.reserve<std::byte>(kernels_->matmul_scratch_bytes(p));
  share(blocks, false, [&](int64_t block, int) { kernels_->pack(p, block, packed + block * block_bytes); });
  const int64_t wanted = std::max<int64_t>(1, 4 * pool_.n_threads() / blocks);  // pieces of a block
  const int64_t piece = std::min<int64_t>(round_up((p.n + wanted - 1) / wanted, kGrain), 32 * kGrain);
  const int64_t pieces = (p.n + piece - 1) / piece;
  share(blocks * pieces, p.n * p.k <= kAloneElements, [&](int64_t i, int thread) {
    const int64_t block = i / pieces, begin = i % pieces * piece;
    kernels_->matmul(p, block, packed + block * block_bytes, begin, std::min(p.n, begin + piece),
                     of_thread_[static_cast<size_t>(thread)].reserve<std::byte>(0));
  });
}

void CpuOps::matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) {
  multiply(x, w, bias, out, Epilogue::store);
}

void CpuOps::matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) {
  multiply(x, w, bias, out, Epilogue::add);
}

}  // namespace firstlight
