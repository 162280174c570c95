// SPDX-License-Identifier: Apache-2.0
// Attention of single rows over TurboQuant codes of 4 or 8 bits, bound by reading them. A block, one a multiprocessor,
// takes parts of rows one after the other, for up to 8 heads of a group; its warps take a part's pages in turn, all 64
// tokens of each, through a ring of their own in shared memory, which runs on into the next part. Products are whole
// numbers: scores exactly those of the CPU; weights 16 bits of a page's largest.
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

/// The block's queries, rotated, as integers of 15 bits in two bytes, a warp a head; and as exact pages want them.
template <int kDim, int kWarps>
__device__ void fix_queries(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim, kWarps>& shared,
                            CodeMeeting<kDim, kWarps>& meeting) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Matrix<const float>& q = p.codes.attend.q;
  if (threadIdx.x < 4) shared.tables[threadIdx.x] = ExpandTables::known();
  if (warp == kWarps - 1 && part.n_pieces > 0) split_query<kDim>(p, part, meeting.exact_query);
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
    int(&base)[4] = q.base[set];
    base[0] = base[1] = base[2] = base[3] = 0;
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      q.b[set][s][0] = *reinterpret_cast<const uint32_t*>(head + 2 * first_dimension<kDim, kBits>(s));
      q.b[set][s][1] = *reinterpret_cast<const uint32_t*>(head + 2 * first_dimension<kDim, kBits>(s) + 8);
      const uint32_t offsets[4] = {kMinusOffsets, kMinusOffsets, kMinusOffsets, kMinusOffsets};
      if constexpr (kBits == 4) mma_s8(base, offsets, q.b[set][s][0], q.b[set][s][1], base);
    }
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
    grows |= top[set] > sums.maximum[set];
  }
  if (__any_sync(kWholeWarp, grows)) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float higher = fmaxf(largest_of_head(top[set]), sums.maximum[set]),
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

/// The warp's pages of codes of the part.
template <int kDim, int kKeyBits, int kValueBits, int kSets, int kWarps>
__device__ __forceinline__ void add_code_pages(CodeRing<kDim, kKeyBits, kValueBits>& ring, int n,
                                               const CodeShared<kDim, kWarps>& shared, const float (&unit)[kSets],
                                               CodeSums<kDim, kSets>& sums) {
  constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  CodeQuery<kDim, kSets> q;
  load_query<kDim, kKeyBits>(shared, q);
  const ExpandTables tables = shared.tables[threadIdx.x % 4];
  for (int i = 0; i < n; ++i) {
    float scores[kSets][2 * kTiles];
    ring.template release<0>(score_page<kDim, kKeyBits, kSets>(ring.template wait<0>(), tables, q, scores));
    const uint8_t* page = ring.template wait<1>() - kShape.values_at();
    scale_scores<kSets>(page + kShape.key_scales_at(), scores);
    CodeWeights<kSets> weights;
    weigh<kDim, kSets>(scores, unit, page + kShape.value_scales_at(), sums, weights);
    ring.template release<1>(mix_page<kDim, kValueBits, kSets>(page + kShape.values_at(), tables, weights, sums.of));
  }
}

/// The warps' sums over codes become the part's. All threads call.
template <int kDim, int kValueBits, int kSets, int kWarps>
__device__ __forceinline__ void join_codes(const CodeSinglesParams& p, const CodePart& part, bool has_any,
                                           const float (&unit)[kSets], CodeSums<kDim, kSets>& sums,
                                           CodeShared<kDim, kWarps>& shared, CodeMeeting<kDim, kWarps>& meeting) {
  const int warp = static_cast<int>(threadIdx.x) / 32, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sums.divisor[set] += __shfl_xor_sync(kWholeWarp, sums.divisor[set], step);
    if (threadIdx.x % 32 < 4) {
      shared.maxima[warp][kSetHeads * set + t] = has_any ? sums.maximum[set] * unit[set] : -INFINITY;
      shared.divisors[warp][kSetHeads * set + t] = sums.divisor[set];
    }
  }
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i)
      *reinterpret_cast<float2*>(&meeting.sums[warp][t][channel_pair<kValueBits>(i)]) =
          make_float2(sums.of[set][i][0], sums.of[set][i][1]);
    join_code_warps<kDim>(p, part, 1, set, shared, meeting);
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kSets, int kWarps>
__device__ __forceinline__ void take_part(const CodeSinglesParams& p, const CodePart& part,
                                          CodeRing<kDim, kKeyBits, kValueBits>& ring, CodeShared<kDim, kWarps>& shared,
                                          CodeMeeting<kDim, kWarps>& meeting) {
  fix_queries(p, part, shared, meeting);
  float unit[kSets];
#pragma unroll
  for (int set = 0; set < kSets; ++set) unit[set] = shared.units[kSetHeads * set + threadIdx.x % 4];
  const int n = ring.n_of(part);
  CodeSums<kDim, kSets> sums;
  if (part.begin < part.end) add_code_pages(ring, n, shared, unit, sums);
  ExactSums<kDim> exact;
  if (part.n_pieces > 0) add_exact_pages(p, part, ring, meeting, exact);
  __syncthreads();  // the exact pages' query has been read
  if (part.begin < part.end) join_codes<kDim, kValueBits>(p, part, n > 0, unit, sums, shared, meeting);
  if (part.n_pieces > 0) join_exact<kDim, kSets>(p, part, exact, shared, meeting);
  if (comes_last(p, part, shared)) merge_parts<kDim, kSets>(p, part, shared, meeting);
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
__global__ void __launch_bounds__(CodeRing<kDim, kKeyBits, kValueBits>::kWarps * 32, 1)
    attend_code_singles_kernel(const __grid_constant__ CodeSinglesParams p) {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits>;
  using Meeting = CodeMeeting<kDim, Ring::kWarps>;
  extern __shared__ __align__(128) uint8_t slots[];
  __shared__ CodeShared<kDim, Ring::kWarps> shared;
  let_successor_start();
  Meeting& meeting = *reinterpret_cast<Meeting*>(slots + Ring::kBytes);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Ring ring(p, shared, slots);
  const int step = static_cast<int>(gridDim.x);
  bool has_waited = !p.olds_hold;
  if (has_waited) wait_for_predecessor();
  for (int number = static_cast<int>(blockIdx.x), n = kPartsKnown; n == kPartsKnown; number += kPartsKnown * step) {
    if (warp < kPartsKnown) shared.is_there[warp] = find_part(p, number + warp * step, shared.parts[warp]);
    __syncthreads();
    for (n = 0; n < kPartsKnown && shared.is_there[n];) ++n;
    // What is asked for at first are pages of codes.
    const bool early = n > 0 && shared.parts[0].end - shared.parts[0].begin >= 2 * Ring::kWarps;
    if (!has_waited && early) ring.begin(shared.parts, n);
    if (!has_waited) wait_for_predecessor();
    asm volatile("fence.proxy.async;" ::: "memory");
    if (has_waited || !early) ring.begin(shared.parts, n);
    has_waited = true;
    for (int k = 0; k < n; ++k) take_part<kDim, kKeyBits, kValueBits, kSets>(p, shared.parts[k], ring, shared, meeting);
    __syncthreads();
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
void start(const CodeSinglesParams& p, int n_blocks, cudaStream_t stream) {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits>;
  constexpr int kBytes = Ring::kBytes + static_cast<int>(sizeof(CodeMeeting<kDim, Ring::kWarps>));
  const auto kernel = attend_code_singles_kernel<kDim, kKeyBits, kValueBits, kSets>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "attention over codes");
  const int64_t most = int64_t{p.most_parts} * p.head_blocks;
  launch("attention over codes", kernel, dim3(static_cast<unsigned>(std::min<int64_t>(n_blocks, most))),
         Ring::kWarps * 32, kBytes, stream, p);
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
