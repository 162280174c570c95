// SPDX-License-Identifier: Apache-2.0
// Attention of single rows over TurboQuant codes of 4 or 8 bits, bound by reading them. A block, one a multiprocessor,
// takes a part of a row's pages for up to 8 heads of a group; its warps take the pages in turn, all 64 tokens of each,
// through a ring of their own in shared memory. Products are whole numbers: scores exactly those of the CPU; weights 16
// bits of a page's largest.
#include <algorithm>

#include "firstlight/ops/attend_codes_exact_cuda.cuh"
#include "firstlight/ops/attend_codes_merge_cuda.cuh"
#include "firstlight/ops/attend_codes_ring_cuda.cuh"
#include "firstlight/ops/attend_codes_values_cuda.cuh"

namespace firstlight::cuda {

namespace {

/// Running softmax of a warp, head lane % 4 of each set.
template <int kDim, int kSets>
struct CodeSums {
  float of[kSets][kDim / 16][2] = {};
  float maximum[kSets], divisor[kSets];  ///< of raw scores; of the lane's keys
  __device__ CodeSums() {
#pragma unroll
    for (int set = 0; set < kSets; ++set) maximum[set] = -1e30f, divisor[set] = 0;
  }
};

/// The block's queries, rotated, as integers of 15 bits in two bytes; a warp a head.
template <int kDim, int kWarps>
__device__ void fix_queries(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim, kWarps>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Matrix<const float>& q = p.codes.attend.q;
  if (threadIdx.x < 4) shared.tables[threadIdx.x] = ExpandTables::known();
  const uint32_t signs = lane_signs<kDim>(p.codes.signs[2 * part.kv_head]);
  for (int g = warp; g < kHeadsAtOnce; g += kWarps) {
    const float* row = q.data + part.row.row * q.stride + (int64_t{part.first_head} + min(g, part.n_heads - 1)) * kDim;
    float x[kDim / 32];
    int integers[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = __ldcg(row + 32 * j + lane);
    rotate<kDim>(signs, x);
    const float unit = fix_query<kDim>(x, integers);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int whole = g < part.n_heads ? integers[j] : 0, high = (whole + 64) >> 7;
      int8_t* at = &shared.query[g][32 * j * 2 + lane / 4 * 8 + lane % 4];
      at[0] = static_cast<int8_t>(high);
      at[4] = static_cast<int8_t>(whole - 128 * high);
    }
    // Scales are stored 64 times as large.
    if (lane == 0) shared.units[g] = g < part.n_heads ? unit * p.codes.attend.scale / 64 : 0.0f;
  }
  __syncthreads();
}

template <int kDim, int kBits, int kSets, int kWarps>
__device__ __forceinline__ void load_query(const CodeShared<kDim, kWarps>& shared, CodeQuery<kDim, kSets>& q) {
  const int column = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    const int8_t* head = shared.query[kSetHeads * set + column / 2] + column % 2 * 4;
    int base[4] = {};
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      q.b[set][s][0] = *reinterpret_cast<const uint32_t*>(head + 2 * first_dimension<kDim, kBits>(s));
      q.b[set][s][1] = *reinterpret_cast<const uint32_t*>(head + 2 * first_dimension<kDim, kBits>(s) + 8);
      const uint32_t offsets[4] = {kMinusOffsets, kMinusOffsets, kMinusOffsets, kMinusOffsets};
      if constexpr (kBits == 4) mma_s8(base, offsets, q.b[set][s][0], q.b[set][s][1], base);
    }
    q.base[set][0] = base[0], q.base[set][1] = base[1];
  }
}

/// The largest of a head's, in every lane that has the head.
__device__ __forceinline__ float largest_of_head(float x) {
#pragma unroll
  for (int step = 4; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, step));
  return x;
}

/// Raw scores become a page's weights; `unit`: what 1 of a raw score is worth.
template <int kDim, int kSets>
__device__ __forceinline__ void weigh(float (&scores)[kSets][2 * kTiles], const float (&unit)[kSets],
                                      const uint8_t* value_scales, CodeSums<kDim, kSets>& sums, CodeWeights<kSets>& w) {
  float top[kSets];
  bool grows = false;
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    top[set] = scores[set][0];
#pragma unroll
    for (int i = 1; i < 2 * kTiles; ++i) top[set] = fmaxf(top[set], scores[set][i]);
    top[set] = largest_of_head(top[set]);
    grows |= top[set] > sums.maximum[set];
  }
  if (__any_sync(kWholeWarp, grows)) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float higher = fmaxf(top[set], sums.maximum[set]),
                  shrink = power_of_two((sums.maximum[set] - higher) * unit[set]);
      sums.maximum[set] = higher;
      sums.divisor[set] *= shrink;
#pragma unroll
      for (auto& each : sums.of[set]) each[0] *= shrink, each[1] *= shrink;
    }
  }
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    const float base = -sums.maximum[set] * unit[set];
    float most = 1e-30f;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float2 scale = pair_of_scales(value_scales, tile);
      float &first = scores[set][2 * tile], &second = scores[set][2 * tile + 1];
      const float a = power_of_two(fmaf(first, unit[set], base)), b = power_of_two(fmaf(second, unit[set], base));
      sums.divisor[set] += a + b;
      first = a * scale.x;
      second = b * scale.y;
      most = fmaxf(most, fmaxf(first, second));
    }
    most = largest_of_head(most);
    const float inverse = __fdividef(65535.0f, most);
    w.unit[set] = most * (1.0f / 65535.0f / 64.0f);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint32_t first = __float_as_uint(fmaf(scores[set][2 * tile], inverse, 12582912.0f)),
                     second = __float_as_uint(fmaf(scores[set][2 * tile + 1], inverse, 12582912.0f));
      w.b[set][tile] = transpose(permute(first, second, 0x4051));  // high, high, low, low
    }
  }
}

/// The part's pages of codes, put down in shared memory. The first ones are on their way.
template <int kDim, int kKeyBits, int kValueBits, int kSets, int kWarps>
__device__ __forceinline__ void add_code_pages(CodeRing<kDim, kKeyBits, kValueBits, kSets>& ring,
                                               CodeShared<kDim, kWarps>& shared, CodeMeeting<kDim, kWarps>& meeting) {
  constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  const int warp = static_cast<int>(threadIdx.x) / 32, t = static_cast<int>(threadIdx.x) % 4;
  CodeQuery<kDim, kSets> q;
  load_query<kDim, kKeyBits>(shared, q);
  float unit[kSets];
#pragma unroll
  for (int set = 0; set < kSets; ++set) unit[set] = shared.units[kSetHeads * set + t];
  CodeSums<kDim, kSets> sums;
  const ExpandTables tables = shared.tables[t];
  for (int i = 0; i < ring.n(); ++i) {
    float scores[kSets][2 * kTiles];
    ring.template release<0>(i, score_page<kDim, kKeyBits, kSets>(ring.template wait<0>(), tables, q, scores));
    const uint8_t* page = ring.template wait<1>() - kShape.values_at();
    scale_scores<kSets>(page + kShape.key_scales_at(), scores);
    CodeWeights<kSets> weights;
    weigh<kDim, kSets>(scores, unit, page + kShape.value_scales_at(), sums, weights);
    ring.template release<1>(i, mix_page<kDim, kValueBits, kSets>(page + kShape.values_at(), tables, weights, sums.of));
  }
  __syncthreads();  // the slots are empty
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    const int head = kSetHeads * set + t;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sums.divisor[set] += __shfl_xor_sync(kWholeWarp, sums.divisor[set], step);
    if (threadIdx.x % 32 < 4) {
      shared.maxima[warp][head] = ring.n() > 0 ? sums.maximum[set] * unit[set] : -INFINITY;
      shared.divisors[warp][head] = sums.divisor[set];
    }
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i)
      *reinterpret_cast<float2*>(&meeting.sums[warp][head][channel_pair<kValueBits>(i)]) =
          make_float2(sums.of[set][i][0], sums.of[set][i][1]);
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
__global__ void __launch_bounds__(CodeRing<kDim, kKeyBits, kValueBits, kSets>::kWarps * 32, 1)
    attend_code_singles_kernel(const __grid_constant__ CodeSinglesParams p) {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits, kSets>;
  using Meeting = CodeMeeting<kDim, Ring::kWarps>;
  extern __shared__ __align__(128) uint8_t slots[];
  __shared__ CodeShared<kDim, Ring::kWarps> shared;
  let_successor_start();
  // Where the first half of the warps have their rings; the others' next pages may be on their way meanwhile.
  static_assert(sizeof(Meeting) <= Ring::kBytes / 2);
  Meeting& meeting = *reinterpret_cast<Meeting*>(slots);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Ring ring(p, shared, slots);
  if (warp == 0) {
    const CodePlan plan(p);
    shared.each = plan.each, shared.n_parts = plan.n_parts * p.head_blocks;
    shared.is_there = find_part(p, plan.each, static_cast<int>(blockIdx.x), shared.parts[0]);
  }
  __syncthreads();
  if (!p.olds_hold) wait_for_predecessor();
  if (shared.is_there) {
    ring.begin(shared.parts[0]);
    fetch_exact_pages<kDim>(p, shared.parts[0]);
  }
  if (p.olds_hold) wait_for_predecessor();
  bool is_there = shared.is_there;
  for (int number = static_cast<int>(blockIdx.x + gridDim.x), turn = 0; is_there; turn ^= 1) {
    const CodePart& part = shared.parts[turn];
    if (part.begin < part.end) {
      fix_queries<kDim>(p, part, shared);
      add_code_pages<kDim, kKeyBits, kValueBits, kSets>(ring, shared, meeting);
      join_code_warps<kDim>(p, part, 1, shared, meeting);
    }
    is_there = number < shared.n_parts;
    if (is_there) {
      if (warp == 0) shared.next_is_there = find_part(p, shared.each, number, shared.parts[turn ^ 1]);
      __syncthreads();
      is_there = shared.next_is_there;
      number += static_cast<int>(gridDim.x);
      if (is_there && warp >= Ring::kWarps / 2) ring.begin(shared.parts[turn ^ 1]);
    }
    if (part.exact_begin < part.exact_end) {
      add_exact_pages<kDim>(p, part, shared, meeting);
      join_code_warps<kDim>(p, part, 0, shared, meeting);
    }
    if (comes_last(p, part, shared)) merge_parts<kDim, kSets>(p, part, shared.each, shared, meeting);
    if (!is_there) break;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (warp < Ring::kWarps / 2) ring.begin(shared.parts[turn ^ 1]);
    fetch_exact_pages<kDim>(p, shared.parts[turn ^ 1]);
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
void start(const CodeSinglesParams& p, int n_blocks, cudaStream_t stream) {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits, kSets>;
  const auto kernel = attend_code_singles_kernel<kDim, kKeyBits, kValueBits, kSets>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Ring::kBytes),
        "attention over codes");
  const int64_t most = int64_t{p.most_parts} * p.head_blocks;
  launch("attention over codes", kernel, dim3(static_cast<unsigned>(std::min<int64_t>(n_blocks, most))),
         Ring::kWarps * 32, Ring::kBytes, stream, p);
}

template <int kKeyBits, int kValueBits>
void start(const CodeSinglesParams& p, int n_blocks, cudaStream_t stream) {
  const auto run = p.codes.shape.head_dim == 64
                       ? p.group <= kSetHeads ? start<64, kKeyBits, kValueBits, 1> : start<64, kKeyBits, kValueBits, 2>
                   : p.group <= kSetHeads ? start<128, kKeyBits, kValueBits, 1>
                                          : start<128, kKeyBits, kValueBits, 2>;
  run(p, n_blocks, stream);
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

void attend_code_singles(const CodeSinglesParams& p, int n_blocks, cudaStream_t stream) {
  const tq::PageShape& shape = p.codes.shape;
  const auto run = shape.key_bits == 4 ? start<4, 4> : shape.value_bits == 4 ? start<8, 4> : start<8, 8>;
  run(p, n_blocks, stream);
}

}  // namespace firstlight::cuda
