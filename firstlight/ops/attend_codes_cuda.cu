// SPDX-License-Identifier: Apache-2.0
// Attention of single rows over TurboQuant codes of 4 or 8 bits, bound by reading them. A block, one a multiprocessor,
// takes parts of rows one after the other, for up to 8 heads of a group; its warps take a part's pages in turn, all 64
// tokens of each, through a ring of their own in shared memory, which runs on into the next part. Products are whole
// numbers: scores exactly those of the CPU; weights 16 bits of a page's largest.
#include <algorithm>

#include "firstlight/ops/attend_codes_exact_cuda.cuh"
#include "firstlight/ops/attend_codes_merge_cuda.cuh"
#include "firstlight/ops/attend_codes_queries_cuda.cuh"
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

template <int kDim, int kBits, int kSets, class Shared>
__device__ __forceinline__ void load_query(const Shared& shared, CodeQuery<kDim, kSets>& q) {
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
template <int kDim, int kKeyBits, int kValueBits, int kSets, class Shared>
__device__ __forceinline__ void add_code_pages(CodeRing<kDim, kKeyBits, kValueBits, kSets>& ring, int n,
                                               const Shared& shared, const float (&unit)[kSets],
                                               CodeSums<kDim, kSets>& sums) {
  constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  CodeQuery<kDim, kSets> q;
  load_query<kDim, kKeyBits>(shared, q);
  const ExpandTables tables = shared.start.tables[threadIdx.x % 4];
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

/// The warps' sums over codes are added to the part's pieces. All threads call.
template <int kDim, int kValueBits, int kSets, int kWarps, class Shared>
__device__ __forceinline__ void join_codes(const RowPart& part, bool has_any, const float (&unit)[kSets],
                                           CodeSums<kDim, kSets>& sums, Shared& shared,
                                           CodePieces<kDim, kSets, kWarps>& pieces) {
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
      *reinterpret_cast<float2*>(&shared.sums[warp][t][channel_pair<kValueBits>(i)]) =
          make_float2(sums.of[set][i][0], sums.of[set][i][1]);
    join_warps(set, part.n_heads, shared, pieces);
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kSets, class Shared>
__device__ __forceinline__ void take_part(const CodeSinglesParams& p, const RowPart& part,
                                          const QueryPlace<kDim>& place,
                                          CodeRing<kDim, kKeyBits, kValueBits, kSets>& ring, Shared& shared) {
  constexpr int kWarps = CodeRing<kDim, kKeyBits, kValueBits, kSets>::kWarps;
  // Asked for before the queries are waited for, and put down when all have left the last part.
  constexpr int kSigns = tq::rounds(kDim) * (kDim / 64);
  const int thread = static_cast<int>(threadIdx.x);
  const tq::Signs& signs = p.codes.signs[2 * part.kv_head + 1];
  unsigned long long signs_of_thread = 0;
  if (thread < kSigns)
    signs_of_thread =
        __ldg(reinterpret_cast<const unsigned long long*>(&signs.bits[thread / (kDim / 64)][thread % (kDim / 64)]));
  take_queries<kDim, kWarps>(p, part, place, shared);
  if (thread < kSigns) shared.signs[thread / (kDim / 64)][thread % (kDim / 64)] = signs_of_thread;
  float unit[kSets];
#pragma unroll
  for (int set = 0; set < kSets; ++set) unit[set] = shared.units[kSetHeads * set + threadIdx.x % 4];
  const int n = ring.n_of(part);
  CodeSums<kDim, kSets> sums;
  if (part.has_codes()) add_code_pages(ring, n, shared, unit, sums);
  ExactSums<kDim> exact;
  if (part.has_exact()) add_exact_pages(p, part, ring, shared, exact);
  __syncthreads();  // the exact pages' query has been read
  CodePieces<kDim, kSets, kWarps> pieces;
  if (part.has_codes()) {
    join_codes<kDim, kValueBits>(part, n > 0, unit, sums, shared, pieces);
    unrotate_pieces(shared, pieces);
  }
  if (part.has_exact()) join_exact(part, exact, shared, pieces);
  pass_on(p, part, pieces, shared);
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
using SharedOf = CodeShared<kDim, kSets, CodeRing<kDim, kKeyBits, kValueBits, kSets>::kWarps,
                            CodeRing<kDim, kKeyBits, kValueBits, kSets>::kDeep>;

template <int kDim, int kKeyBits, int kValueBits, int kSets>
__global__ void __launch_bounds__(CodeRing<kDim, kKeyBits, kValueBits, kSets>::kWarps * 32, code_blocks(kSets))
    attend_code_singles_kernel(const __grid_constant__ CodeSinglesParams p) {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits, kSets>;
  extern __shared__ __align__(128) uint8_t slots[];
  __shared__ SharedOf<kDim, kKeyBits, kValueBits, kSets> shared;
  let_successor_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Ring ring(p, shared, slots);
  const int step = static_cast<int>(gridDim.x);
  bool has_waited = !p.olds_hold;
  if (has_waited) wait_for_predecessor();
  for (int number = static_cast<int>(blockIdx.x), n = kPartsKnown; n == kPartsKnown; number += kPartsKnown * step) {
    if (warp < kPartsKnown) shared.is_there[warp] = find_part(p, number + warp * step, shared.parts[warp]);
    __syncthreads();
    for (n = 0; n < kPartsKnown && shared.is_there[n];) ++n;
    ring.begin(n);
    // Where rows are turned here no kernel of this pass has written what they read.
    const bool turns = p.codes.attend.angles != nullptr;
    if (!has_waited) ring.ask_first(turns);
    for (int k = 0; k < n; ++k) {
      const QueryPlace<kDim> place(p, shared.parts[k]);
      if (k == 0) {
        if (!has_waited) wait_for_predecessor();
        has_waited = true;
        if (!turns) asm volatile("fence.proxy.async.global;" ::: "memory");
        ring.ask_first(true);
      }
      take_part<kDim, kKeyBits, kValueBits, kSets>(p, shared.parts[k], place, ring, shared);
    }
    __syncthreads();
  }
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
int blocks_held() {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits, kSets>;
  constexpr int kBytes = Ring::kBytes + static_cast<int>(sizeof(SharedOf<kDim, kKeyBits, kValueBits, kSets>));
  static_assert(code_blocks(kSets) * (kBytes + 1024) <= 228 * 1024, "of a multiprocessor of Hopper");
  static thread_local int held = 0;
  if (held == 0) {
    const auto kernel = attend_code_singles_kernel<kDim, kKeyBits, kValueBits, kSets>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Ring::kBytes),
          "allow attention over codes its shared memory");
    int of_sm = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_sm, kernel, Ring::kWarps * 32, Ring::kBytes),
          "how many blocks of attention over codes fit");
    held = std::max(1, of_sm * facts_of(reinterpret_cast<const void*>(kernel), "attention over codes").n_sms);
  }
  return held;
}

template <int kDim, int kKeyBits, int kValueBits, int kSets>
void start(const CodeSinglesParams& p, cudaStream_t stream) {
  using Ring = CodeRing<kDim, kKeyBits, kValueBits, kSets>;
  const int64_t most = int64_t{p.most_parts} * p.head_blocks;
  launch("attention over codes", attend_code_singles_kernel<kDim, kKeyBits, kValueBits, kSets>,
         dim3(static_cast<unsigned>(std::min<int64_t>(p.n_blocks, most))), Ring::kWarps * 32, Ring::kBytes, stream, p);
}

/// One of the kernels.
template <int kDim_, int kKeyBits_, int kValueBits_, int kSets_>
struct CodeKernel {
  static int held() { return blocks_held<kDim_, kKeyBits_, kValueBits_, kSets_>(); }
  static void run(const CodeSinglesParams& p, cudaStream_t stream) {
    start<kDim_, kKeyBits_, kValueBits_, kSets_>(p, stream);
  }
};

template <int kDim, int kSets, class Fn>
auto with_kernel_of(const tq::PageShape& shape, const Fn& fn) {
  return shape.key_bits == 4     ? fn(CodeKernel<kDim, 4, 4, kSets>{})
         : shape.value_bits == 4 ? fn(CodeKernel<kDim, 8, 4, kSets>{})
                                 : fn(CodeKernel<kDim, 8, 8, kSets>{});
}

/// fn(the CodeKernel for these).
template <class Fn>
auto with_kernel(const AttendCodesParams& p, const Fn& fn) {
  const bool one_set = p.attend.n_heads / p.attend.kv.n_kv_heads <= kSetHeads;
  if (p.shape.head_dim == 64) return one_set ? with_kernel_of<64, 1>(p.shape, fn) : with_kernel_of<64, 2>(p.shape, fn);
  return one_set ? with_kernel_of<128, 1>(p.shape, fn) : with_kernel_of<128, 2>(p.shape, fn);
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

int code_blocks_held(const AttendCodesParams& p) {
  return with_kernel(p, [](auto kernel) { return kernel.held(); });
}

void attend_code_singles(const CodeSinglesParams& p, cudaStream_t stream) {
  with_kernel(p.codes, [&](auto kernel) { kernel.run(p, stream); });
}

}  // namespace firstlight::cuda
