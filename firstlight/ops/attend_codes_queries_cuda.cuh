// SPDX-License-Identifier: Apache-2.0
// What attention of single rows over codes makes of its rows before its first product: queries turned by position,
// then in two bf16 terms for exact pages, and rotated and rounded for codes; and of a row's own key and value, which no
// kernel in front stores, what is read and stored of them. A warp a head. A kernel in front for this costs a layer
// longer than each part's own 0.5 us.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight::cuda {

/// x, coordinate 32 j + lane in register j, turned by the row's angles, which are the lane's.
template <int kDim>
__device__ __forceinline__ void turn(const float2* angles, float (&x)[kDim / 32]) {
  constexpr int kHalf = kDim / 64;
#pragma unroll
  for (int j = 0; j < kHalf; ++j) {
    const float2 turned = rotate(x[j], x[j + kHalf], __ldcg(angles + 32 * j));
    x[j] = turned.x;
    x[j + kHalf] = turned.y;
  }
}

/// Head `g` of the block; `flips`: of its keys. Destroys x.
template <int kDim, class Shared>
__device__ __forceinline__ void put_query(const CodeSinglesParams& p, const RowPart& part, int g, uint32_t flips,
                                          float (&x)[kDim / 32], Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (part.has_exact()) {
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      auto* terms = reinterpret_cast<__nv_bfloat16*>(&shared.start.exact_query[2 * j + lane / 4 % 2][4 * g + lane / 8]);
      put_terms(x[j], terms + lane % 4 / 2 * 4 + lane % 2, 2);
    }
  }
  if (!part.has_codes()) return;
  rotate<kDim>(flips, x);
  int integers[kDim / 32];
  const float unit = fix_query<kDim>(x, integers);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const int high = (integers[j] + 64) >> 7;
    int8_t* at = &shared.query[g][32 * j * 2 + lane / 4 * 8 + lane % 4];
    at[0] = static_cast<int8_t>(high);
    at[4] = static_cast<int8_t>(integers[j] - 128 * high);
  }
  // Scales are stored 64 times as large.
  if (lane == 0) shared.units[g] = unit * p.codes.attend.scale / 64;
}

/// What a warp takes of a part's row, and where it puts it: known before the kernels in front have ended.
template <int kDim>
struct QueryPlace {
  const float *queries, *own;  ///< the block's first query; the row's own key
  const float2* angles;        ///< of the row, of the lane; null: it is turned, and its own key and value are stored
  uint32_t flips;              ///< of its keys
  int n_items;                 ///< queries, then the own key and value, if the part has the row's last page
  __nv_bfloat16* exact;        ///< where the own key goes; null if another block of the group's heads puts it there

  __device__ __forceinline__ QueryPlace(const CodeSinglesParams& p, const RowPart& part) : exact(nullptr) {
    const AttendParams& a = p.codes.attend;
    const KvLayer& kv = a.kv;
    const int lane = static_cast<int>(threadIdx.x) % 32, position = part.row.position;
    const float* row = a.q.data + part.row.row * a.q.stride + lane;
    flips = lane_signs<kDim>(p.codes.signs[2 * part.kv_head]);
    queries = row + int64_t{first_head(p, part)} * kDim;
    own = row + (int64_t{a.n_heads} + part.kv_head) * kDim;
    angles = a.angles ? a.angles + int64_t{part.row.angle} * (kDim / 2) + lane : nullptr;
    n_items = part.n_heads;
    const int n_exact = RowCut(p.exact_units, position).n_exact;
    if (!angles || !part.has_exact() || part.exact_begin + (part.n_pieces + kPagePieces - 1) / kPagePieces < n_exact)
      return;
    n_items += 2;
    if (part.head_block % p.of_group != 0) return;
    const auto number = static_cast<uint64_t>(__ldg(p.codes.exact + part.row.pages + position / kPageTokens));
    exact = reinterpret_cast<__nv_bfloat16*>(kv.exact + number * kv.exact_stride) +
            (int64_t{part.kv_head} * kPageTokens + position % kPageTokens) * kDim + lane;
  }
};

/// The row's own key (side 0) or value (1): into the exact page, and to where its codes are made of it.
template <int kDim, class Shared>
__device__ __forceinline__ void put_own(const CodeSinglesParams& p, const RowPart& part, int side, __nv_bfloat16* exact,
                                        float (&x)[kDim / 32], Shared& shared) {
  const KvLayer& kv = p.codes.attend.kv;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    x[j] = __fsub_rn(x[j], mean_of(kv, side, part.kv_head, 32 * j + lane));
    shared.start.own[side][32 * j + lane] = __float2bfloat16_rn(x[j]);
  }
  if (!exact) return;
  exact += int64_t{side} * kv.n_kv_heads * kPageTokens * kDim;
  float* own = p.own + ((int64_t{part.index} * 2 + side) * kv.n_kv_heads + part.kv_head) * kDim + lane;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    exact[32 * j] = __float2bfloat16_rn(x[j]);
    own[32 * j] = x[j];
  }
}

/// All threads call.
template <int kDim, int kWarps, class Shared>
__device__ __forceinline__ void take_queries(const CodeSinglesParams& p, const RowPart& part,
                                             const QueryPlace<kDim>& place, Shared& shared) {
  if (threadIdx.x < 4) shared.start.tables[threadIdx.x] = ExpandTables::known();
  if (static_cast<int>(threadIdx.x) >= part.n_heads && threadIdx.x < Shared::kHeads) shared.units[threadIdx.x] = 0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) / 32; i < place.n_items; i += kWarps) {
    const int side = i - part.n_heads;  // below 0: a query
    const float* head = side < 0 ? place.queries + i * kDim : place.own + side * p.codes.attend.kv.n_kv_heads * kDim;
    float x[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = __ldcg(head + 32 * j);
    if (place.angles && side < 1) turn<kDim>(place.angles, x);
    if (side < 0) {
      put_query<kDim>(p, part, i, place.flips, x, shared);
    } else {
      put_own<kDim>(p, part, side, place.exact, x, shared);
    }
  }
  __syncthreads();
}

}  // namespace firstlight::cuda
