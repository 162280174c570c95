// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace {

__global__ void add_kernel(Matrix<const float> y, Matrix<float> x) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const int64_t i = blockIdx.x;
  for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) x.data[i * x.stride + c] += y.data[i * y.stride + c];
}

}  // namespace

void CudaOps::add(Matrix<const float> y, Matrix<float> x) {
  if (y.rows != x.rows || y.cols != x.cols) {
    throw Error(ErrorKind::bug, str("[", y.rows, ", ", y.cols, "] added to [", x.rows, ", ", x.cols, "]"));
  }
  if (x.rows == 0) return;
  close_program();
  cuda::launch("add", add_kernel, dim3(static_cast<unsigned>(x.rows)), 256, 0, stream_, y, x);
  written(x);
}

}  // namespace firstlight
