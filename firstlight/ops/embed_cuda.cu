// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace {

template <class T>
__global__ void embed_kernel(const int32_t* ids, const T* table, int64_t table_rows, int64_t first_row,
                             Matrix<float> out) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const int64_t i = blockIdx.x, row = int64_t{ids[i]} - first_row;
  const bool here = row >= 0 && row < table_rows;
  for (int64_t c = threadIdx.x; c < out.cols; c += blockDim.x) {
    out.data[i * out.stride + c] = here ? cuda::widen(table[row * out.cols + c]) : 0.0f;
  }
}

}  // namespace

void CudaOps::embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) {
  if (out.rows != static_cast<int64_t>(ids.size()) || out.cols != table.cols) {
    throw Error(ErrorKind::bug, str("embedding of ", ids.size(), " tokens, ", table.cols, " wide, into [", out.rows,
                                    ", ", out.cols, "]"));
  }
  if (out.rows == 0) return;
  const int32_t* on_device = pass_.ids(ids);
  launch_waiting();
  const dim3 grid(static_cast<unsigned>(out.rows));
  if (table.dtype == DType::bf16) {
    cuda::launch("embed", embed_kernel<__nv_bfloat16>, grid, 256, 0, stream_, on_device,
                 static_cast<const __nv_bfloat16*>(table.data), table.rows, first_row, out);
  } else if (table.dtype == DType::f32) {
    cuda::launch("embed", embed_kernel<float>, grid, 256, 0, stream_, on_device, static_cast<const float*>(table.data),
                 table.rows, first_row, out);
  } else {
    throw Error(ErrorKind::unsupported,
                str("the CUDA back end computes with bf16 and f32 weights, found ", to_string(table.dtype)));
  }
  written(out);
}

}  // namespace firstlight
