// SPDX-License-Identifier: Apache-2.0
// Attention of single rows over TurboQuant codes of 4 or 8 bits, bound by reading them. A warp takes every fourth page
// of its block's part, all 64 tokens for up to 8 heads: the next page's keys are on their way to registers while this
// page's weights and sums are computed, and its values while the next scores are. Products are whole numbers: scores
// exactly those of the CPU; weights 16 bits of a page's largest.
#include <algorithm>

#include "firstlight/ops/attend_codes_exact_cuda.cuh"
#include "firstlight/ops/attend_codes_keys_cuda.cuh"
#include "firstlight/ops/attend_codes_merge_cuda.cuh"

namespace firstlight::cuda {

namespace {

/// With 3 of 168 registers at head_dim 128, 32 x 4,096 keys took 76 us in place of 61, 8 x 32,768 98.6 in place
/// of 94.1.
constexpr int blocks_at_once(int head_dim) { return head_dim == 128 ? 2 : 3; }

/// Running softmax of a warp, head lane / 4.
template <int kDim>
struct CodeSums {
  float of[kDim / 8][2] = {};
  float maximum = -1e30f, divisor = 0;  ///< of raw scores; of the lane's keys
};

/// The block's queries, rotated, as integers of 15 bits in two bytes; a warp a head.
template <int kDim>
__device__ void fix_queries(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Matrix<const float>& q = p.codes.attend.q;
  if (threadIdx.x < 4) shared.tables[threadIdx.x] = ExpandTables::known();
  static_assert(kHeadsAtOnce == 2 * kCodeWarps);
  const uint32_t signs = lane_signs<kDim>(p.codes.signs[2 * part.kv_head]);
  float x[2][kDim / 32], units[2];  // two heads side by side: shuffles of one while the other's are under way
  int integers[2][kDim / 32];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int g = warp + i * kCodeWarps;
    const float* row = q.data + part.row.row * q.stride + (int64_t{part.first_head} + min(g, part.n_heads - 1)) * kDim;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[i][j] = __ldcg(row + 32 * j + lane);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rotate<kDim>(signs, x[i]);
    units[i] = fix_query<kDim>(x[i], integers[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int g = warp + i * kCodeWarps;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int whole = g < part.n_heads ? integers[i][j] : 0, high = (whole + 64) >> 7;
      int8_t* at = &shared.query[g][32 * j * 2 + lane / 4 * 8 + lane % 4];
      at[0] = static_cast<int8_t>(high);
      at[4] = static_cast<int8_t>(whole - 128 * high);
    }
    // Scales are stored 64 times as large.
    if (lane == 0) shared.units[g] = g < part.n_heads ? units[i] * p.codes.attend.scale / 64 : 0.0f;
  }
  __syncthreads();
}

template <int kDim, int kBits>
__device__ __forceinline__ void load_query(const CodeShared<kDim>& shared, CodeQuery<kDim>& q) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int s = 0; s < kDim / 32; ++s) {
    const uint4 eight = *reinterpret_cast<const uint4*>(&shared.query[g][2 * first_dimension<kDim, kBits>(s)]);
    q.a[s][0] = eight.x, q.a[s][1] = eight.y, q.a[s][2] = eight.z, q.a[s][3] = eight.w;
  }
  q.base[0] = q.base[1] = q.base[2] = q.base[3] = 0;
  if constexpr (kBits == 4) {
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) mma_s8(q.base, q.a[s], kMinusOffsets, kMinusOffsets, q.base);
  }
}

/// Raw scores become a page's weights; `unit`: what 1 of a raw score is worth.
template <int kDim>
__device__ __forceinline__ CodeWeights weigh(float (&scores)[16], float unit, const uint8_t* value_scales,
                                             CodeSums<kDim>& sums) {
  float top = scores[0];
#pragma unroll
  for (int i = 1; i < 16; ++i) top = fmaxf(top, scores[i]);
  top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
  top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
  if (__any_sync(kWholeWarp, top > sums.maximum)) {
    const float higher = fmaxf(top, sums.maximum), shrink = power_of_two((sums.maximum - higher) * unit);
    sums.maximum = higher;
    sums.divisor *= shrink;
#pragma unroll
    for (auto& each : sums.of) each[0] *= shrink, each[1] *= shrink;
  }
  const float base = -sums.maximum * unit;
  const ScalePieces scales(value_scales);
  float most = 1e-30f;
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    const float2 scale = scales.pair(i / 2);
    const float a = power_of_two(fmaf(scores[i], unit, base)), b = power_of_two(fmaf(scores[i + 1], unit, base));
    sums.divisor += a + b;
    scores[i] = a * scale.x;
    scores[i + 1] = b * scale.y;
    most = fmaxf(most, fmaxf(scores[i], scores[i + 1]));
  }
  most = fmaxf(most, __shfl_xor_sync(kWholeWarp, most, 1));
  most = fmaxf(most, __shfl_xor_sync(kWholeWarp, most, 2));
  const float inverse = __fdividef(65535.0f, most);
  CodeWeights w;
  w.unit = most * (1.0f / 65535.0f / 64.0f);
#pragma unroll
  for (int quad = 0; quad < 4; ++quad) {
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __float_as_uint(fmaf(scores[4 * quad + i], inverse, 12582912.0f));
    const uint32_t first = permute(x[0], x[1], 0x5140), second = permute(x[2], x[3], 0x5140);  // low, low, high, high
    w.a[quad / 2][quad % 2 * 2] = permute(first, second, 0x7632);
    w.a[quad / 2][quad % 2 * 2 + 1] = permute(first, second, 0x5410);
  }
  return w;
}

/// The warp's pages of codes, in order.
struct CodePages {
  const int32_t* numbers;  ///< of the warp's first page
  uint64_t stride;
  int n, held = 0, next_held;
  __device__ CodePages(const CodeSinglesParams& p, const CodePart& part) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const KvLayer& kv = p.codes.attend.kv;
    numbers = p.codes.attend.pages + part.row.pages + part.begin + warp;
    stride = kv.page_stride;
    n = max(0, (part.end - part.begin - warp + kCodeWarps - 1) / kCodeWarps);
    next_held = read(0);
  }
  __device__ __forceinline__ int read(int i) const {
    const int mine = i + static_cast<int>(threadIdx.x) % 32;
    return mine < n ? numbers[mine * kCodeWarps] : 0;
  }
  /// Must be asked for in order, from 0 on.
  __device__ __forceinline__ uint64_t offset(int i) {
    if (i % 32 == 0) {
      held = next_held;
      next_held = read(i + 32);
    }
    return static_cast<uint64_t>(static_cast<uint32_t>(__shfl_sync(kWholeWarp, held, i % 32))) * stride;
  }
};

/// A page in registers, and where the lane's pieces lie in page 0.
template <int kDim, int kKeyBits, int kValueBits>
struct CodeStream {
  static constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  CodeKeys<kDim, kKeyBits> keys;
  CodeValues<kDim, kValueBits> values;
  const uint8_t *keys_at, *values_at;
  uint32_t scales_to;  ///< in shared memory

  __device__ CodeStream(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim>& shared) {
    const auto* head =
        reinterpret_cast<const uint8_t*>(p.codes.attend.kv.data) + int64_t{part.kv_head} * kShape.bytes();
    keys_at = head + keys.lane_offset();
    values_at = head + kShape.values_at() + values.lane_offset();
    scales_to = static_cast<uint32_t>(__cvta_generic_to_shared(shared.scales[threadIdx.x / 32][0]));
  }
  /// Page i's keys to registers, its scales on their way to shared memory.
  __device__ __forceinline__ void load_keys(uint64_t offset, int i) {
    keys.load(keys_at + offset);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane < 16) {
      copy_async(scales_to + static_cast<uint32_t>(i % 2 * 4 * kPageTokens + lane * 16),
                 keys_at + offset + (kShape.key_scales_at() - keys.lane_offset() + lane * 16), true);
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void load_values(uint64_t offset) { values.load(values_at + offset); }
};

/// The part's pages of codes, put down in shared memory. The first ones are in `stream` or on their way.
template <int kDim, int kKeyBits, int kValueBits>
__device__ __forceinline__ void add_code_pages(const CodeSinglesParams& p, CodePages& pages,
                                               CodeStream<kDim, kKeyBits, kValueBits>& stream,
                                               CodeShared<kDim>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(threadIdx.x) % 32 / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  CodeQuery<kDim> q;
  load_query<kDim, kKeyBits>(shared, q);
  const float unit = shared.units[g];
  __syncthreads();  // the queries' place is wanted for sums
  CodeSums<kDim> sums;
  const ExpandTables tables = shared.tables[t];
  for (int i = 0; i < pages.n; ++i) {
    const bool more = i + 1 < pages.n;
    const uint64_t next = more ? pages.offset(i + 1) : 0;
    const uint8_t* scales = shared.scales[warp][i % 2];
    float scores[16];
    copy_async_wait<0>();
    __syncwarp();
    stream.keys.score(tables, q, ScalePieces(scales), scores);
    if (more) stream.load_keys(next, i + 1);
    const CodeWeights weights = weigh<kDim>(scores, unit, scales + 2 * kPageTokens, sums);
    stream.values.mix(tables, weights, sums.of);
    if (more) stream.load_values(next);
  }
  sums.divisor += __shfl_xor_sync(kWholeWarp, sums.divisor, 1);
  sums.divisor += __shfl_xor_sync(kWholeWarp, sums.divisor, 2);
  if (t == 0) {
    shared.maxima[warp][g] = pages.n > 0 ? sums.maximum * unit : -INFINITY;
    shared.divisors[warp][g] = sums.divisor;
  }
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) shared.sums[warp][g][channel<kValueBits>(n, 2 * t + e)] = sums.of[n][e];
  }
}

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kCodeWarps * 32, blocks_at_once(kDim))
    attend_code_singles_kernel(const __grid_constant__ CodeSinglesParams p) {
  __shared__ CodeShared<kDim> shared;
  let_successor_start();
  const int each = units_each(p);
  CodePart part;
  bool ready = false;
  for (int number = static_cast<int>(blockIdx.x); find_part(p, each, number, part);
       number += static_cast<int>(gridDim.x)) {
    CodePages pages(p, part);
    CodeStream<kDim, kKeyBits, kValueBits> stream(p, part, shared);
    if (!p.olds_hold && !ready) wait_for_predecessor(), ready = true;
    if (pages.n > 0) {
      const uint64_t first = pages.offset(0);
      stream.load_keys(first, 0);
      stream.load_values(first);
    }
    if (part.exact_begin < part.exact_end) fetch_exact_pages<kDim>(p, part);
    if (!ready) wait_for_predecessor(), ready = true;
    if (part.begin < part.end) {
      fix_queries<kDim>(p, part, shared);
      add_code_pages<kDim, kKeyBits, kValueBits>(p, pages, stream, shared);
      join_code_warps<kDim>(p, part, 1, shared);
    }
    if (part.exact_begin < part.exact_end) {
      add_exact_pages<kDim>(p, part, shared);
      join_code_warps<kDim>(p, part, 0, shared);
    }
    if (comes_last(p, part, shared)) merge_parts<kDim>(p, part, each, shared);
  }
  if (!ready) wait_for_predecessor();
}

using Kernel = void (*)(CodeSinglesParams);

template <int kKeyBits, int kValueBits>
Kernel kernel_of(int head_dim) {
  return head_dim == 64 ? attend_code_singles_kernel<64, kKeyBits, kValueBits>
                        : attend_code_singles_kernel<128, kKeyBits, kValueBits>;
}

Kernel kernel_of(const tq::PageShape& shape) {
  return shape.key_bits == 4     ? kernel_of<4, 4>(shape.head_dim)
         : shape.value_bits == 4 ? kernel_of<8, 4>(shape.head_dim)
                                 : kernel_of<8, 8>(shape.head_dim);
}

}  // namespace

bool takes_code_singles(const AttendCodesParams& p) {
  const KvLayer& kv = p.attend.kv;
  return (kv.head_dim == 64 || kv.head_dim == 128) && (p.shape.key_bits == 4 || p.shape.key_bits == 8) &&
         (p.shape.value_bits == 4 || p.shape.value_bits == 8) && kv.page_stride % 16 == 0 &&
         kv.exact_stride % 16 == 0 && reinterpret_cast<uintptr_t>(kv.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(kv.exact) % 16 == 0 && p.attend.q.stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(p.attend.q.data) % 8 == 0;
}

int code_blocks_at_once(const AttendCodesParams& p) { return blocks_at_once(p.shape.head_dim); }

void attend_code_singles(const CodeSinglesParams& p, int n_blocks, cudaStream_t stream) {
  const int64_t most = int64_t{p.most_parts} * p.head_blocks;
  launch("attention over codes", kernel_of(p.codes.shape),
         dim3(static_cast<unsigned>(std::min<int64_t>(n_blocks, most))), kCodeWarps * 32, 0, stream, p);
}

}  // namespace firstlight::cuda
