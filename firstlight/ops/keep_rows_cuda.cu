// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace {

/// A thread a column, rows in order: a row's new place is never below a row that still has to move.
__global__ void keep_rows_kernel(const cuda::RowOnDevice* rows, int n_rows, Matrix<float> m) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= m.cols) return;
  for (int64_t i = 0; i < n_rows; ++i) m.data[i * m.stride + c] = m.data[rows[i].row * m.stride + c];
}

}  // namespace

void CudaOps::keep_rows(std::span<const AttentionSpan> spans, Matrix<float>& m) {
  if (spans.empty()) {
    m.rows = 0;
    return;
  }
  const cuda::RowSet& set = pass_.find(spans);
  if (!set.in_place) {
    launch_waiting();
    constexpr int kThreads = 64;  // columns are all the work there is: many small blocks
    cuda::launch("keep_rows", keep_rows_kernel, dim3(static_cast<unsigned>((m.cols + kThreads - 1) / kThreads)),
                 kThreads, 0, stream_, set.rows, set.n_rows, m);
    written(m);
  }
  m.rows = set.n_rows;
}

}  // namespace firstlight
