// SPDX-License-Identifier: Apache-2.0
// Exact pages beside codes: a warp takes 16 tokens of a page at a time, from shared memory. q and the weights go in as
// two bf16 terms, in rows 0 to 7 and 8 to 15 of the first operand, so that nothing but the pages' own rounding is lost.
#pragma once
#include "firstlight/ops/attend_codes_ring_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

template <int kDim>
struct ExactSums {
  float of[kDim / 8][4] = {};  ///< [n]: of channels 64 (n / 8) + n % 8, every eighth; the last two: of the low terms
  float maximum = -INFINITY, divisor = 0;
};

/// scores[2 tile + e]: of token 8 tile + 2 t + e. What is returned depends on every word that was read.
template <int kDim>
__device__ __forceinline__ int score_exactly(const uint4 (&query)[kDim / 16][32], const __nv_bfloat16* keys,
                                             float (&scores)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    float c[4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint4 k = *reinterpret_cast<const uint4*>(keys + (8 * tile + g) * kDim + 8 * (t + 4 * i));
      const uint4 a = query[2 * i][lane], b = query[2 * i + 1][lane];
      mma(c, a.x, a.y, a.z, a.w, k.x, k.y);
      mma(c, b.x, b.y, b.z, b.w, k.z, k.w);
    }
    scores[2 * tile] = c[0] + c[2];
    scores[2 * tile + 1] = c[1] + c[3];
  }
  return __float_as_int(scores[0] + scores[2]) ^ 1;  // a number that is none is not kNever
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

/// What is returned depends on every word that was read.
template <int kDim>
__device__ __forceinline__ int mix_exactly(const float (&weights)[4], const __nv_bfloat16* values, int n_slots,
                                           ExactSums<kDim>& sums) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a[4], seen = 0;
  split(weights[0], weights[1], a[0], a[1]);
  split(weights[2], weights[3], a[2], a[3]);
#pragma unroll
  for (int half = 0; half < kDim / 64; ++half) {
    uint4 v[4];  // tokens 2 t, 2 t + 1, 2 t + 8, 2 t + 9; what is not visible may be anything
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = i / 2 * 8 + 2 * t + i % 2;
      v[i] = *reinterpret_cast<const uint4*>(values + slot * kDim + 8 * (g + 8 * half));
      seen ^= v[i].x;
      if (slot >= n_slots) v[i] = make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto word = [&](const uint4& x) { return i / 2 == 0 ? x.x : i / 2 == 1 ? x.y : i / 2 == 2 ? x.z : x.w; };
      const uint32_t selector = i % 2 == 0 ? 0x5410 : 0x7632;
      mma(sums.of[8 * half + i], a[0], a[1], a[2], a[3], permute(word(v[0]), word(v[1]), selector),
          permute(word(v[2]), word(v[3]), selector));
    }
  }
  return static_cast<int>(seen);
}

/// The row's own key or value into the ring's slot, which has what the page held before.
template <int kDim>
__device__ __forceinline__ void put_into(const uint8_t* numbers, int slot, const __nv_bfloat16 (&own)[kDim]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto* to = reinterpret_cast<uint2*>(const_cast<uint8_t*>(numbers)) + slot * (kDim / 4);
  if (lane < kDim / 4) to[lane] = reinterpret_cast<const uint2*>(own)[lane];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the slot's next copy comes after it
  __syncwarp();
}

/// The warp's pieces of the part's exact pages.
template <int kDim, class Ring, class Shared>
__device__ __forceinline__ void add_exact_pages(const CodeSinglesParams& p, const RowPart& part, Ring& ring,
                                                const Shared& shared, ExactSums<kDim>& sums) {
  const RowCut row(p.exact_units, part.row.position);
  for (int piece = ring.first_piece(part); piece < part.n_pieces; piece += Ring::kWarps) {
    const int page = row.exact_page(part.exact_begin + piece / kPagePieces),
              n_slots = part.row.position + 1 - page * kPageTokens - piece % kPagePieces * kPieceTokens;
    const bool has_own = p.codes.attend.angles && n_slots <= kPieceTokens;
    float scores[4];
    const uint8_t* keys = ring.template wait<0>();
    if (has_own) put_into<kDim>(keys, n_slots - 1, shared.start.own[0]);
    ring.template release<0>(
        score_exactly<kDim>(shared.start.exact_query, reinterpret_cast<const __nv_bfloat16*>(keys), scores));
    weigh_exactly<kDim>(p.codes.attend.scale, n_slots, scores, sums);
    const uint8_t* values = ring.template wait<1>();
    if (has_own) put_into<kDim>(values, n_slots - 1, shared.start.own[1]);
    ring.template release<1>(mix_exactly<kDim>(scores, reinterpret_cast<const __nv_bfloat16*>(values), n_slots, sums));
  }
}

/// The warps' sums over exact pages are added to the part's pieces. All threads call.
template <int kDim, int kSets, int kWarps, class Shared>
__device__ __forceinline__ void join_exact(const RowPart& part, ExactSums<kDim>& sums, Shared& shared,
                                           CodePieces<kDim, kSets, kWarps>& pieces) {
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(threadIdx.x) % 32 / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  sums.divisor += __shfl_xor_sync(kWholeWarp, sums.divisor, 1);
  sums.divisor += __shfl_xor_sync(kWholeWarp, sums.divisor, 2);
  if (t == 0 && g < kSets * kSetHeads) shared.maxima[warp][g] = sums.maximum, shared.divisors[warp][g] = sums.divisor;
#pragma unroll 1
  for (int set = 0; set < kSets; ++set) {
    if (g / kSetHeads == set) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        float* sum = &shared.sums[warp][g % kSetHeads][64 * (n / 8) + 16 * t + n % 8];
        sum[0] = sums.of[n][0] + sums.of[n][2];
        sum[8] = sums.of[n][1] + sums.of[n][3];
      }
    }
    join_warps(set, part.n_heads, shared, pieces);
  }
}

}  // namespace firstlight::cuda
