// SPDX-License-Identifier: Apache-2.0
// Causal attention over pages. Short spans go row by row, longer ones by tiles of 64 rows; which, and how keys are cut,
// follows from a sequence's own length alone, so its bits depend neither on the batch nor on where its pages lie.
#include <algorithm>
#include <bit>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kMostDim = 256;
constexpr int kDims = kMostDim / 32;  // of a lane

/// A block a row and head; a warp takes every fourth key, a lane every 32nd dimension.
template <class T>
__global__ void attend_plain_kernel(const __grid_constant__ AttendParams p, const RowOnDevice* rows) {
  __shared__ float sums[kWarps][kMostDim], maxima[kWarps], divisors[kWarps];
  wait_for_predecessor();
  let_successor_start();
  const RowOnDevice row = rows[blockIdx.x];
  const int d = p.kv.head_dim, h = static_cast<int>(blockIdx.y), kv_head = h / (p.n_heads / p.kv.n_kv_heads);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const float* q_row = p.q.data + row.row * p.q.stride + int64_t{h} * d;
  float q[kDims], sum[kDims] = {}, maximum = -INFINITY, divisor = 0;
#pragma unroll
  for (int j = 0; j < kDims; ++j) q[j] = lane + 32 * j < d ? q_row[lane + 32 * j] : 0;
  for (int key = warp; key <= row.position; key += kWarps) {
    const int64_t page = p.pages[row.pages + key / kPageTokens];
    const T* keys = reinterpret_cast<const T*>(p.kv.data + static_cast<uint64_t>(page) * p.kv.page_stride) +
                    (int64_t{kv_head} * kPageTokens + key % kPageTokens) * d;
    const T* values = keys + int64_t{p.kv.n_kv_heads} * kPageTokens * d;
    float score = 0;
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      if (lane + 32 * j < d) score += q[j] * widen(keys[lane + 32 * j]);
    }
    score = warp_sum(score) * p.scale;
    const float top = fmaxf(maximum, score), shrink = exp2f(maximum - top), weight = exp2f(score - top);
    maximum = top;
    divisor = divisor * shrink + weight;
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      if (lane + 32 * j < d) sum[j] = sum[j] * shrink + weight * widen(values[lane + 32 * j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kDims; ++j) sums[warp][lane + 32 * j] = sum[j];
  if (lane == 0) maxima[warp] = maximum, divisors[warp] = divisor;
  __syncthreads();
  float top = maxima[0], total = 0;
  for (int w = 1; w < kWarps; ++w) top = fmaxf(top, maxima[w]);
  for (int w = 0; w < kWarps; ++w) total += divisors[w] * exp2f(maxima[w] - top);
  for (int i = static_cast<int>(threadIdx.x); i < d; i += kWarps * 32) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += sums[w][i] * exp2f(maxima[w] - top);
    value /= total;
    p.out.data[row.row * p.out.stride + int64_t{h} * d + i] = value;
    if (p.twin) p.twin[row.row * p.out.cols + int64_t{h} * d + i] = __float2bfloat16_rn(value);
  }
}

}  // namespace

void attend_plain(const AttendParams& params, const RowOnDevice* rows, int n_rows, cudaStream_t stream) {
  if (params.kv.head_dim > kMostDim) {
    throw Error(ErrorKind::unsupported,
                str("heads of ", params.kv.head_dim, ": the CUDA back end computes with up to ", kMostDim));
  }
  launch("plain attention",
         params.kv.kind == KvKind::bf16 ? attend_plain_kernel<__nv_bfloat16> : attend_plain_kernel<float>,
         dim3(static_cast<unsigned>(n_rows), static_cast<unsigned>(params.n_heads)), kWarps * 32, 0, stream, params,
         rows);
}

}  // namespace cuda

cuda::SinglesParams CudaOps::singles(const cuda::AttendParams& params, const cuda::RowSet& set) {
  const int blocks = cuda::n_head_blocks(params);
  const int heads = std::min(cuda::kHeadsAtOnce, params.n_heads / params.kv.n_kv_heads);
  cuda::SinglesParams singles{.attend = params, .rows = set.singles, .n_rows = set.n_single};
  // A row is cut into as many chunks as fill the GPU once, if it is long enough.
  singles.group = params.n_heads / params.kv.n_kv_heads;
  singles.heads = heads;
  singles.of_group = cuda::ceil_div(singles.group, cuda::kHeadsAtOnce);
  singles.head_blocks = blocks;
  singles.n_blocks = cuda::kSinglesAtOnce * gpu_.n_sms;
  singles.most_chunks = std::clamp(singles.n_blocks / blocks, 1, cuda::kMostChunks);
  const int64_t pages = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(pages_bound(set))));
  singles.n_chunks =
      static_cast<int>(std::min<int64_t>(singles.most_chunks, (pages + cuda::kLeastPages - 1) / cuda::kLeastPages));
  singles.n_sharing = options_.n_sharing;
  singles.olds_hold = pass_.all().n_tiles == 0;
  if (singles.n_chunks > 1) {
    const int64_t rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(set.n_single)));
    const auto bytes = static_cast<uint64_t>(rows * blocks * singles.n_chunks * heads * params.kv.head_dim / 4) *
                       sizeof(cuda::ChunkPiece);
    if (partials_.reserve(bytes, stream_)) {
      forget_recordings();
      cuda::check(cudaMemsetAsync(partials_.as<cuda::ChunkPiece>(), 0xff, bytes, stream_), "clear attention's sums");
    }
  }
  singles.partials = partials_.as<cuda::ChunkPiece>();
  // As sums, for a power of two of rows: a batch that grows by one does not forget what was recorded.
  const int64_t planned_rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(set.n_single)));
  reserve(plan_memory_,
          static_cast<int64_t>(sizeof(cuda::SinglesPlan)) + cuda::items_bytes(planned_rows, singles.n_chunks));
  singles.plan = plan_memory_.as<cuda::SinglesPlan>();
  singles.items = reinterpret_cast<cuda::ReadyItem*>(singles.plan + 1);
  return singles;
}

void CudaOps::attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
                     Matrix<float> out) {
  const int64_t width = int64_t{n_heads} * kv.head_dim;
  if (kv.n_kv_heads <= 0 || n_heads % kv.n_kv_heads != 0 || q.cols < width || out.cols < width) {
    throw Error(ErrorKind::bug, str("attention of ", n_heads, " heads of ", kv.head_dim, " on ", kv.n_kv_heads,
                                    " key/value heads: q is ", q.cols, " wide, out ", out.cols));
  }
  const cuda::RowSet& set = pass_.find(spans);
  if (set.n_rows == 0) return;
  const bool whole = set.n_rows == out.rows && out.cols == width;
  __nv_bfloat16* twin = whole ? twin_for(out) : nullptr;
  if (!whole) written(out);
  cuda::AttendParams params{.q = q,
                            .out = out,
                            .twin = twin,
                            .n_heads = n_heads,
                            .kv = kv,
                            .pages = pass_.pages(),
                            .scale = 1.44269504f / std::sqrt(static_cast<float>(kv.head_dim))};
  if (is_compressed(kv.kind)) return attend_codes(params, set);
  const bool fast = kv.kind == KvKind::bf16 && (kv.head_dim == 64 || kv.head_dim == 128) && kv.page_stride % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(kv.data) % 16 == 0 && q.stride % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(q.data) % 16 == 0 && out.stride % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(out.data) % 16 == 0;
  if (!fast) {
    launch_waiting();
    return cuda::attend_plain(params, set.rows, set.n_rows, stream_);
  }
  params.angles = take_rope(params, set);
  if (set.n_single > 0) {
    const cuda::SinglesParams of_singles = singles(params, set);
    launch_waiting();
    const PlannedSingles wanted{set.singles, of_singles.n_rows, of_singles.head_blocks, of_singles.most_chunks};
    if (planned_ != wanted) {
      cuda::plan_singles(of_singles, stream_);
      planned_ = wanted;
    }
    cuda::attend_singles(of_singles, stream_);
  }
  if (set.n_tiles == 0) return;
  if (hopper_attention_->why_not().empty()) {
    hopper_attention_->attend(params, set.tiles, set.n_tiles, stream_);
  } else {
    cuda::attend_tiles(params, set.tiles, set.n_tiles, stream_);
  }
}

}  // namespace firstlight
