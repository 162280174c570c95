// SPDX-License-Identifier: Apache-2.0
// Attention over any kind of TurboQuant codes, straight from the format's description: a block a row and head, a warp
// every fourth key. The reference of the fast kernel, and what computes the kinds and rows that have none.
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 4;

struct PlainParams {
  AttendCodesParams codes;
  const RowOnDevice* rows;
};

/// A warp's softmax so far; the sums over codes are rotated, those over exact pages are not.
template <int kDim>
struct Sums {
  float rotated[kDim / 32] = {}, exact[kDim / 32] = {}, maximum = -INFINITY, divisor = 0;

  /// The weight of a key with that score; older sums shrink.
  __device__ __forceinline__ float weight(float score) {
    const float top = fmaxf(maximum, score), shrink = exp2f(maximum - top), weight = exp2f(score - top);
    maximum = top;
    divisor = divisor * shrink + weight;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) rotated[j] *= shrink, exact[j] *= shrink;
    return weight;
  }
};

template <int kDim>
struct Shared {
  int8_t levels[2][16];  ///< of a key's and a value's code, below 8 bits
  int q[kDim];           ///< rotated, as integers
  float unit;
  float rotated[kWarps][kDim], exact[kWarps][kDim], maxima[kWarps], divisors[kWarps];
};

__device__ int level_of(int bits, uint32_t code) {
  return bits == 4 ? tq::level<4>(code) : bits == 3 ? tq::level<3>(code) : tq::level<2>(code);
}

/// The levels of codes and, by the first warp, the query as integers.
template <int kDim>
__device__ void prepare(const AttendCodesParams& p, const float* q_row, int kv_head, Shared<kDim>& shared) {
  if (threadIdx.x < 32) {
    const int bits = threadIdx.x < 16 ? p.shape.key_bits : p.shape.value_bits;
    const uint32_t code = threadIdx.x % 16;
    if (bits < 8 && code < 1u << bits) {
      shared.levels[threadIdx.x / 16][code] = static_cast<int8_t>(level_of(bits, code));
    }
    float x[kDim / 32];
    int integers[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = q_row[32 * j + threadIdx.x];
    rotate<kDim>(lane_signs<kDim>(p.signs[2 * kv_head]), x);
    const float unit = fix_query<kDim>(x, integers);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) shared.q[32 * j + threadIdx.x] = integers[j];
    if (threadIdx.x == 0) shared.unit = unit;
  }
  __syncthreads();
}

template <int kDim>
__device__ __forceinline__ void add_code(const AttendCodesParams& p, const Shared<kDim>& shared, const uint8_t* page,
                                         int slot, Sums<kDim>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto level = [&](int side, int bits, uint32_t code) {
    return bits == 8 ? tq::level<8>(code) : int{shared.levels[side][code]};
  };
  int product = 0;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const int i = 32 * j + lane;
    const uint32_t code = tq::key_code(page + slot * p.shape.key_bytes(), kDim, p.shape.key_bits, i);
    product += shared.q[i] * level(0, p.shape.key_bits, code);
  }
  product = __reduce_add_sync(kWholeWarp, product);
  const float key_scale = tq::scale_of(reinterpret_cast<const uint16_t*>(page + p.shape.key_scales_at())[slot]);
  const float value_scale = tq::scale_of(reinterpret_cast<const uint16_t*>(page + p.shape.value_scales_at())[slot]);
  const float weight =
      sums.weight(static_cast<float>(product) * key_scale * shared.unit * p.attend.scale) * value_scale;
  const uint8_t* quad = page + p.shape.values_at() + slot / tq::kQuad * p.shape.quad_bytes();
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const uint32_t code = tq::value_code(quad, kDim, p.shape.value_bits, slot % tq::kQuad, 32 * j + lane);
    sums.rotated[j] += weight * static_cast<float>(level(1, p.shape.value_bits, code));
  }
}

template <int kDim>
__device__ __forceinline__ void add_exact(const AttendCodesParams& p, const float (&q)[kDim / 32],
                                          const __nv_bfloat16* key, const __nv_bfloat16* value, Sums<kDim>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float score = 0;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) score += q[j] * widen(key[32 * j + lane]);
  const float weight = sums.weight(warp_sum(score) * p.attend.scale);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) sums.exact[j] += weight * widen(value[32 * j + lane]);
}

/// The warps' sums together, those over codes rotated back; by the first warp.
template <int kDim>
__device__ void finish(const AttendCodesParams& p, const RowOnDevice& row, int head, int kv_head,
                       const Sums<kDim>& sums, Shared<kDim>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    shared.rotated[warp][32 * j + lane] = sums.rotated[j];
    shared.exact[warp][32 * j + lane] = sums.exact[j];
  }
  if (lane == 0) shared.maxima[warp] = sums.maximum, shared.divisors[warp] = sums.divisor;
  __syncthreads();
  if (warp > 0) return;
  float top = shared.maxima[0], total = 0, rotated[kDim / 32] = {}, exact[kDim / 32] = {};
  for (int w = 1; w < kWarps; ++w) top = fmaxf(top, shared.maxima[w]);
  for (int w = 0; w < kWarps; ++w) {
    const float share = exp2f(shared.maxima[w] - top);
    total += share * shared.divisors[w];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      rotated[j] += share * shared.rotated[w][32 * j + lane];
      exact[j] += share * shared.exact[w][32 * j + lane];
    }
  }
  unrotate<kDim>(lane_signs<kDim>(p.signs[2 * kv_head + 1]), rotated);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const int column = head * kDim + 32 * j + lane;
    const float value = (rotated[j] + exact[j]) / total + mean_of(p.attend.kv, 1, kv_head, 32 * j + lane);
    p.attend.out.data[row.row * p.attend.out.stride + column] = value;
    if (p.attend.twin) p.attend.twin[row.row * p.attend.out.cols + column] = __float2bfloat16_rn(value);
  }
}

template <int kDim>
__global__ void attend_codes_plain_kernel(const __grid_constant__ PlainParams params) {
  __shared__ Shared<kDim> shared;
  wait_for_predecessor();
  let_successor_start();
  const AttendCodesParams& p = params.codes;
  const KvLayer& kv = p.attend.kv;
  const RowOnDevice row = params.rows[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y), kv_head = head / (p.attend.n_heads / kv.n_kv_heads);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const float* q_row = p.attend.q.data + row.row * p.attend.q.stride + int64_t{head} * kDim;
  prepare<kDim>(p, q_row, kv_head, shared);
  float q[kDim / 32];
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) q[j] = q_row[32 * j + lane];
  Sums<kDim> sums;
  const int last = row.position / kPageTokens;
  for (int page = 0; page <= last; ++page) {
    const int end = min(kPageTokens, row.position + 1 - page * kPageTokens);
    if (page == 0 || page + kExactTail > last) {  // is_exact()
      const auto* keys = reinterpret_cast<const __nv_bfloat16*>(
                             kv.exact + static_cast<uint64_t>(p.exact[row.pages + page]) * kv.exact_stride) +
                         int64_t{kv_head} * kPageTokens * kDim;
      const __nv_bfloat16* values = keys + int64_t{kv.n_kv_heads} * kPageTokens * kDim;
      for (int slot = warp; slot < end; slot += kWarps)
        add_exact<kDim>(p, q, keys + slot * kDim, values + slot * kDim, sums);
    } else {
      const auto* at = reinterpret_cast<const uint8_t*>(kv.data) +
                       static_cast<uint64_t>(p.attend.pages[row.pages + page]) * kv.page_stride +
                       int64_t{kv_head} * p.shape.bytes();
      for (int slot = warp; slot < end; slot += kWarps) add_code<kDim>(p, shared, at, slot, sums);
    }
  }
  if (sums.maximum == -INFINITY) sums.maximum = -3e38f;  // a warp without a key
  finish<kDim>(p, row, head, kv_head, sums, shared);
}

}  // namespace

void attend_codes_plain(const AttendCodesParams& params, const RowOnDevice* rows, int n_rows, cudaStream_t stream) {
  const int d = params.attend.kv.head_dim;
  launch("plain attention over codes",
         d == 64    ? attend_codes_plain_kernel<64>
         : d == 128 ? attend_codes_plain_kernel<128>
                    : attend_codes_plain_kernel<256>,
         dim3(static_cast<unsigned>(n_rows), static_cast<unsigned>(params.attend.n_heads)), kWarps * 32, 0, stream,
         PlainParams{params, rows});
}

}  // namespace firstlight::cuda
