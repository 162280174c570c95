// SPDX-License-Identifier: Apache-2.0
// Attention of single rows, bound by reading keys and values: each is read once for all heads of its group (up to 8),
// straight into the registers that tensor cores take. Scores are q [16 heads, of which 8 are zero] times keys; the sum
// over dimensions may take them in any order, so a lane's 16 bytes of a key serve two products. Weights times values: a
// lane loads 8 dimensions of each of four keys and pairs them up by byte permutation. q and the weights go in as two
// bf16 terms each, so that nothing but the pages' own rounding is lost. Of every page a warp takes 16 slots.
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kLeastPages = 4;  // of a chunk

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// A row's chunks follow from its own length (and the GPU and the model): pages in each.
__device__ __forceinline__ int chunk_pages(int n_pages, int most_chunks) {
  return max(kLeastPages, (n_pages + most_chunks - 1) / most_chunks);
}

template <int kDim>
struct Keys {
  uint4 of[2][kDim / 32];  // [tile of 8 keys][32 dimensions]
};
template <int kDim>
struct Values {
  uint4 of[4][kDim / 64];  // [key of four][64 dimensions]
};
/// Running softmax of a warp: of head lane / 4, dimensions 64 h + 16 (lane % 4) + {e, 8 + e}.
template <int kDim>
struct Sums {
  float of[kDim / 64][8][2] = {};
  float maximum = -INFINITY, divisor = 0;
};
template <int kDim>
struct Query {
  uint32_t high[kDim / 32][4], low[kDim / 32][4];
};

/// The lane's keys of a warp's 16: 4 t + 2 tile + {0, 1} where it has a product's column, so that its scores are those
/// of keys 4 t … 4 t + 3.
template <int kDim>
__device__ __forceinline__ void load_keys(const __nv_bfloat16* head, int slot, int n_slots, Keys<kDim>& to) {
  const int lane = threadIdx.x % 32, column = lane / 4;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    const int key = slot + column / 2 * 4 + tile * 2 + column % 2;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const __nv_bfloat16* at = head + key * kDim + i * 32 + lane % 4 * 8;
      to.of[tile][i] = key < n_slots ? load_stream_fresh(at) : make_uint4(0, 0, 0, 0);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void load_values(const __nv_bfloat16* head, int slot, int n_slots, Values<kDim>& to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int key = slot + lane % 4 * 4 + c;
#pragma unroll
    for (int h = 0; h < kDim / 64; ++h) {
      const __nv_bfloat16* at = head + key * kDim + h * 64 + lane / 4 * 8;
      to.of[c][h] = key < n_slots ? load_stream_fresh(at) : make_uint4(0, 0, 0, 0);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void load_query(const float* q, bool there, Query<kDim>& to) {
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    float4 a = make_float4(0, 0, 0, 0), b = a;
    if (there) {
      const float4* at = reinterpret_cast<const float4*>(q + i * 32 + threadIdx.x % 4 * 8);
      a = at[0];
      b = at[1];
    }
    split(a.x, a.y, to.high[i][0], to.low[i][0]);
    split(a.z, a.w, to.high[i][1], to.low[i][1]);
    split(b.x, b.y, to.high[i][2], to.low[i][2]);
    split(b.z, b.w, to.high[i][3], to.low[i][3]);
  }
}

template <int kDim>
__device__ __forceinline__ void score(const Query<kDim>& q, const Keys<kDim>& keys, float (&scores)[2][2]) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    float low[2] = {};
    scores[tile][0] = scores[tile][1] = 0;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint4 k = keys.of[tile][i];
      mma_upper(scores[tile], q.high[i][0], q.high[i][1], k.x, k.y);
      mma_upper(low, q.low[i][0], q.low[i][1], k.x, k.y);
      mma_upper(scores[tile], q.high[i][2], q.high[i][3], k.z, k.w);
      mma_upper(low, q.low[i][2], q.low[i][3], k.z, k.w);
    }
    scores[tile][0] += low[0];
    scores[tile][1] += low[1];
  }
}

__device__ __forceinline__ uint32_t word(const uint4& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

template <int kDim>
__device__ __forceinline__ void mix(const float (&weights)[2][2], const Values<kDim>& values, Sums<kDim>& sums) {
  uint32_t high[2], low[2];
  split(weights[0][0], weights[0][1], high[0], low[0]);
  split(weights[1][0], weights[1][1], high[1], low[1]);
#pragma unroll
  for (int h = 0; h < kDim / 64; ++h) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t halves = e % 2 ? 0x7632u : 0x5410u;
      const uint32_t b0 = __byte_perm(word(values.of[0][h], e / 2), word(values.of[1][h], e / 2), halves);
      const uint32_t b1 = __byte_perm(word(values.of[2][h], e / 2), word(values.of[3][h], e / 2), halves);
      mma_upper(sums.of[h][e], high[0], high[1], b0, b1);
      mma_upper(sums.of[h][e], low[0], low[1], b0, b1);
    }
  }
}

/// One step of 16 keys: scores become weights, sums shrink to the new maximum.
template <int kDim>
__device__ __forceinline__ void weigh(float scale, int slot, int n_slots, float (&scores)[2][2], Sums<kDim>& sums) {
  const int first = slot + threadIdx.x % 4 * 4;
  float top = -INFINITY;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scores[tile][i] = first + tile * 2 + i < n_slots ? scores[tile][i] * scale : -INFINITY;
      top = fmaxf(top, scores[tile][i]);
    }
  }
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
  top = fmaxf(top, sums.maximum);
  const float base = top == -INFINITY ? 0 : top;  // a warp without a visible key so far
  const float shrink = power_of_two(sums.maximum - base);
  sums.maximum = top;
  sums.divisor *= shrink;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sums.divisor += scores[tile][i] = power_of_two(scores[tile][i] - base);
  }
#pragma unroll
  for (int h = 0; h < kDim / 64; ++h) {
#pragma unroll
    for (int e = 0; e < 8; ++e) sums.of[h][e][0] *= shrink, sums.of[h][e][1] *= shrink;
  }
}

template <int kDim>
__device__ void store(const SinglesParams& p, const RowOnDevice& row, int head, int n_chunks, int i, float sum,
                      float maximum, float divisor) {
  if (n_chunks == 1) {
    const float value = sum / divisor;
    const int64_t column = int64_t{head} * kDim + i;
    p.attend.out.data[row.row * p.attend.out.stride + column] = value;
    if (p.attend.twin) p.attend.twin[row.row * p.attend.out.cols + column] = __float2bfloat16_rn(value);
    return;
  }
  float* partial =
      p.partials + ((int64_t{blockIdx.z} * p.attend.n_heads + head) * p.n_chunks + blockIdx.x) * (kDim + 2);
  partial[i] = sum;
  if (i == 0) partial[kDim] = maximum, partial[kDim + 1] = divisor;
}

/// The block's sums: those of its warps, in order.
template <int kDim>
__device__ void join_warps(const SinglesParams& p, const RowOnDevice& row, int first_head, int n_heads, int n_chunks,
                           const Sums<kDim>& sums) {
  __shared__ float shared[kWarps][kHeadsAtOnce][kDim], maxima[kWarps][kHeadsAtOnce], divisors[kWarps][kHeadsAtOnce];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = lane / 4;
  float divisor = sums.divisor;
  divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
  divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
  if (lane % 4 == 0) maxima[warp][head] = sums.maximum, divisors[warp][head] = divisor;
#pragma unroll
  for (int h = 0; h < kDim / 64; ++h) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      shared[warp][head][h * 64 + lane % 4 * 16 + e] = sums.of[h][e][0];
      shared[warp][head][h * 64 + lane % 4 * 16 + 8 + e] = sums.of[h][e][1];
    }
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < n_heads * kDim; at += kWarps * 32) {
    const int g = at / kDim, i = at % kDim;
    float top = maxima[0][g], sum = 0, total = 0;
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float share = power_of_two(maxima[w][g] - top);  // warp 0 of a chunk has a visible key: top is finite
      sum += share * shared[w][g][i];
      total += share * divisors[w][g];
    }
    store<kDim>(p, row, first_head + g, n_chunks, i, sum, top, total);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kWarps * 32, 3) attend_singles_kernel(const __grid_constant__ SinglesParams p) {
  let_successor_start();
  wait_for_predecessor();
  const KvLayer& kv = p.attend.kv;
  const RowOnDevice row = p.rows[blockIdx.z];
  const int n_pages = row.position / kPageTokens + 1, per_chunk = chunk_pages(n_pages, p.most_chunks);
  const int n_chunks = (n_pages + per_chunk - 1) / per_chunk;
  if (static_cast<int>(blockIdx.x) >= n_chunks) return;
  const int group = p.attend.n_heads / kv.n_kv_heads, head_blocks = (group + kHeadsAtOnce - 1) / kHeadsAtOnce;
  const int kv_head = static_cast<int>(blockIdx.y) / head_blocks;
  const int in_group = static_cast<int>(blockIdx.y) % head_blocks * kHeadsAtOnce;
  const int n_heads = min(kHeadsAtOnce, group - in_group), first_head = kv_head * group + in_group;
  const int lane = threadIdx.x % 32, slot = threadIdx.x / 32 * 16;
  const int begin = static_cast<int>(blockIdx.x) * per_chunk, end = min(n_pages, begin + per_chunk);

  const int64_t to_values = int64_t{kv.n_kv_heads} * kPageTokens * kDim;
  const auto keys_of = [&](int page) {
    const int64_t at = p.attend.pages[row.pages + page];
    return reinterpret_cast<const __nv_bfloat16*>(kv.data + static_cast<uint64_t>(at) * kv.page_stride) +
           int64_t{kv_head} * kPageTokens * kDim;
  };
  const auto slots_of = [&](int page) { return row.position + 1 - page * kPageTokens; };  // beyond 64: all

  Query<kDim> q;
  Keys<kDim> keys;
  Values<kDim> values;
  Sums<kDim> sums;
  const __nv_bfloat16* head = keys_of(begin);
  load_keys<kDim>(head, slot, slots_of(begin), keys);
  load_query<kDim>(p.attend.q.data + row.row * p.attend.q.stride + (int64_t{first_head} + lane / 4) * kDim,
                   lane / 4 < n_heads, q);
  for (int page = begin; page < end; ++page) {
    load_values<kDim>(head + to_values, slot, slots_of(page), values);
    float scores[2][2];
    score<kDim>(q, keys, scores);
    if (page + 1 < end) {
      head = keys_of(page + 1);
      load_keys<kDim>(head, slot, slots_of(page + 1), keys);
    }
    weigh<kDim>(p.attend.scale, slot, slots_of(page), scores, sums);
    mix<kDim>(scores, values, sums);
  }
  join_warps<kDim>(p, row, first_head, n_heads, n_chunks, sums);
}

constexpr int kMergeThreads = 256;
constexpr int kMostChunks = 128;

template <int kDim>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const __grid_constant__ SinglesParams p) {
  constexpr int kParts = kMergeThreads / kDim;
  __shared__ float shares[kMostChunks], divisors[kMostChunks], sums[kParts][kDim];
  let_successor_start();
  wait_for_predecessor();
  const RowOnDevice row = p.rows[blockIdx.y];
  const int n_pages = row.position / kPageTokens + 1, per_chunk = chunk_pages(n_pages, p.most_chunks);
  const int n_chunks = (n_pages + per_chunk - 1) / per_chunk;
  if (n_chunks == 1) return;
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x);
  const float* partials = p.partials + (int64_t{blockIdx.y} * p.attend.n_heads + head) * p.n_chunks * (kDim + 2);
  if (thread < n_chunks) {
    shares[thread] = partials[thread * (kDim + 2) + kDim];
    divisors[thread] = partials[thread * (kDim + 2) + kDim + 1];
  }
  __syncthreads();
  float top = shares[0];
  for (int c = 1; c < n_chunks; ++c) top = fmaxf(top, shares[c]);
  __syncthreads();
  if (thread < n_chunks) shares[thread] = power_of_two(shares[thread] - top);
  __syncthreads();
  const int part = thread / kDim, i = thread % kDim;
  float sum = 0;
#pragma unroll 8
  for (int c = part; c < n_chunks; c += kParts) sum += shares[c] * partials[c * (kDim + 2) + i];
  sums[part][i] = sum;
  __syncthreads();
  if (part > 0) return;
  float total = 0;
  for (int c = 0; c < n_chunks; ++c) total += shares[c] * divisors[c];
#pragma unroll
  for (int k = 1; k < kParts; ++k) sum += sums[k][i];
  const float value = sum / total;
  const int64_t column = int64_t{head} * kDim + i;
  p.attend.out.data[row.row * p.attend.out.stride + column] = value;
  if (p.attend.twin) p.attend.twin[row.row * p.attend.out.cols + column] = __float2bfloat16_rn(value);
}

template <int kDim>
void start(const SinglesParams& p, cudaStream_t stream) {
  const int group = p.attend.n_heads / p.attend.kv.n_kv_heads;
  const int blocks = p.attend.kv.n_kv_heads * ((group + kHeadsAtOnce - 1) / kHeadsAtOnce);
  const unsigned rows = static_cast<unsigned>(p.n_rows);
  launch("attention of single rows", attend_singles_kernel<kDim>,
         dim3(static_cast<unsigned>(p.n_chunks), static_cast<unsigned>(blocks), rows), kWarps * 32, 0, stream, p);
  if (p.n_chunks == 1) return;
  launch("merge of attention", merge_kernel<kDim>, dim3(static_cast<unsigned>(p.attend.n_heads), rows), kMergeThreads,
         0, stream, p);
}

}  // namespace

void attend_singles(const SinglesParams& params, cudaStream_t stream) {
  params.attend.kv.head_dim == 64 ? start<64>(params, stream) : start<128>(params, stream);
}

}  // namespace firstlight::cuda
