// SPDX-License-Identifier: Apache-2.0
// Exact pages beside codes: a warp takes 16 tokens of a page, four warps one. q and the weights go in as two bf16
// terms, in rows 0 to 7 and 8 to 15 of the first operand, so that nothing but the pages' own rounding is lost.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

template <int kDim>
struct ExactSums {
  float of[kDim / 8][4] = {};  ///< [n]: of channels 64 (n / 8) + n % 8, every eighth; the last two: of the low terms
  float maximum = -INFINITY, divisor = 0;
};

/// Head lane / 4 of the part, as the first operand.
template <int kDim>
struct ExactQuery {
  uint32_t a[kDim / 16][4];
  __device__ __forceinline__ ExactQuery(const CodeSinglesParams& p, const CodePart& part) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
    const Matrix<const float>& q = p.codes.attend.q;
    const float* row = q.data + part.row.row * q.stride + (int64_t{part.first_head} + g) * kDim;
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 x = make_float2(0, 0);
        if (g < part.n_heads)
          x = __ldcg(reinterpret_cast<const float2*>(row + 8 * (t + 4 * (s / 2)) + 4 * (s % 2) + 2 * half));
        split(x.x, x.y, a[s][2 * half], a[s][2 * half + 1]);
      }
    }
  }
};

/// scores[2 tile + e]: of token 8 tile + 2 t + e.
template <int kDim>
__device__ __forceinline__ void score_exactly(const ExactQuery<kDim>& q, const __nv_bfloat16* keys,
                                              float (&scores)[4]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    float c[4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint4 k = load_stream_fresh(keys + (8 * tile + g) * kDim + 8 * (t + 4 * i));
      mma(c, q.a[2 * i][0], q.a[2 * i][1], q.a[2 * i][2], q.a[2 * i][3], k.x, k.y);
      mma(c, q.a[2 * i + 1][0], q.a[2 * i + 1][1], q.a[2 * i + 1][2], q.a[2 * i + 1][3], k.z, k.w);
    }
    scores[2 * tile] = c[0] + c[2];
    scores[2 * tile + 1] = c[1] + c[3];
  }
}

/// Scores become weights, older sums shrink; `n_slots`: of these 16 and on, how many are visible.
template <int kDim>
__device__ __forceinline__ void weigh_exactly(float scale, int n_slots, float (&scores)[4], ExactSums<kDim>& sums) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  float top = -INFINITY;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scores[i] = i / 2 * 8 + 2 * t + i % 2 < n_slots ? scores[i] * scale : -INFINITY;
    top = fmaxf(top, scores[i]);
  }
  top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
  top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
  top = fmaxf(top, sums.maximum);
  const float base = top == -INFINITY ? 0 : top, shrink = exp2f(sums.maximum - base);
  sums.maximum = top, sums.divisor *= shrink;
#pragma unroll
  for (float& each : scores) sums.divisor += each = exp2f(each - base);
#pragma unroll
  for (auto& tile : sums.of) {
#pragma unroll
    for (float& each : tile) each *= shrink;
  }
}

template <int kDim>
__device__ __forceinline__ void mix_exactly(const float (&weights)[4], const __nv_bfloat16* values, int n_slots,
                                            ExactSums<kDim>& sums) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a[4];
  split(weights[0], weights[1], a[0], a[1]);
  split(weights[2], weights[3], a[2], a[3]);
#pragma unroll
  for (int half = 0; half < kDim / 64; ++half) {
    uint4 v[4];  // tokens 2 t, 2 t + 1, 2 t + 8, 2 t + 9; what is not visible may be anything, so it is not read
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = i / 2 * 8 + 2 * t + i % 2;
      v[i] = slot < n_slots ? load_stream_fresh(values + slot * kDim + 8 * (g + 8 * half)) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto word = [&](const uint4& x) { return i / 2 == 0 ? x.x : i / 2 == 1 ? x.y : i / 2 == 2 ? x.z : x.w; };
      const uint32_t selector = i % 2 == 0 ? 0x5410 : 0x7632;
      mma(sums.of[8 * half + i], a[0], a[1], a[2], a[3], permute(word(v[0]), word(v[1]), selector),
          permute(word(v[2]), word(v[3]), selector));
    }
  }
}

/// The part's exact pages on their way to L2, where nothing that is still to be written is missed.
template <int kDim>
__device__ __forceinline__ void fetch_exact_pages(const CodeSinglesParams& p, const CodePart& part) {
  constexpr int kBytes = kPageTokens * kDim * 2;  // keys or values of a head
  const KvLayer& kv = p.codes.attend.kv;
  const RowCut row(p, part.row.position);
  for (int i = part.exact_begin; i < part.exact_end; ++i) {
    const std::byte* keys = kv.exact +
                            static_cast<uint64_t>(p.codes.exact[part.row.pages + row.exact_page(i)]) * kv.exact_stride +
                            int64_t{part.kv_head} * kBytes;
    if (threadIdx.x < 2) fetch_to_l2(keys + static_cast<int>(threadIdx.x) * int64_t{kv.n_kv_heads} * kBytes, kBytes);
  }
}

/// The part's exact pages, put down in shared memory.
template <int kDim, int kWarps>
__device__ void add_exact_pages(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim, kWarps>& shared,
                                CodeMeeting<kDim, kWarps>& meeting) {
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(threadIdx.x) % 32 / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  const KvLayer& kv = p.codes.attend.kv;
  ExactSums<kDim> sums;
  const RowCut row(p, part.row.position);
  for (int i = part.exact_begin + warp / 4; i < part.exact_end; i += kWarps / 4) {
    const int page = row.exact_page(i), n_slots = part.row.position + 1 - page * kPageTokens - warp % 4 * 16;
    const auto number = static_cast<uint64_t>(p.codes.exact[part.row.pages + page]);
    const auto* keys = reinterpret_cast<const __nv_bfloat16*>(kv.exact + number * kv.exact_stride) +
                       (int64_t{part.kv_head} * kPageTokens + warp % 4 * 16) * kDim;
    float scores[4];
    score_exactly<kDim>(ExactQuery<kDim>(p, part), keys, scores);
    weigh_exactly<kDim>(p.codes.attend.scale, n_slots, scores, sums);
    mix_exactly<kDim>(scores, keys + int64_t{kv.n_kv_heads} * kPageTokens * kDim, n_slots, sums);
  }
  sums.divisor += __shfl_xor_sync(kWholeWarp, sums.divisor, 1);
  sums.divisor += __shfl_xor_sync(kWholeWarp, sums.divisor, 2);
  if (t == 0) shared.maxima[warp][g] = sums.maximum, shared.divisors[warp][g] = sums.divisor;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    float* sum = &meeting.sums[warp][g][64 * (n / 8) + 16 * t + n % 8];
    sum[0] = sums.of[n][0] + sums.of[n][2];
    sum[8] = sums.of[n][1] + sums.of[n][3];
  }
}

}  // namespace firstlight::cuda
