// SPDX-License-Identifier: Apache-2.0
// Queries that no rotation by position has made ready for attention over codes: a kernel of its own does.
#include "firstlight/ops/codes_query_cuda.cuh"

namespace firstlight::cuda {

namespace {

template <int kDim>
__global__ void ready_queries_kernel(const __grid_constant__ CodeSinglesParams p) {
  let_successor_start();
  const AttendParams& a = p.codes.attend;
  const int index = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const HeadPlace place(head, p.group);
  const uint32_t flips = lane_signs<kDim>(p.codes.signs[2 * (head / p.group)]);
  const float* row = a.q.data + p.rows[index].row * a.q.stride + int64_t{head} * kDim + threadIdx.x;
  wait_for_predecessor();
  float x[kDim / 32];
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) x[j] = row[32 * j];
  auto* queries = static_cast<ReadyQueries<kDim>*>(p.queries) + int64_t{index} * p.head_blocks + place.head_block;
  make_ready<kDim>(flips, place.in_block, x, *queries);
}

}  // namespace

int64_t ready_query_bytes(int head_dim) {
  return head_dim == 64 ? int64_t{sizeof(ReadyQueries<64>)} : int64_t{sizeof(ReadyQueries<128>)};
}

void ready_queries(const CodeSinglesParams& p, cudaStream_t stream) {
  launch("queries for attention over codes",
         p.codes.shape.head_dim == 64 ? ready_queries_kernel<64> : ready_queries_kernel<128>,
         dim3(static_cast<unsigned>(p.n_rows), static_cast<unsigned>(p.codes.attend.n_heads)), 32, 0, stream, p);
}

}  // namespace firstlight::cuda
