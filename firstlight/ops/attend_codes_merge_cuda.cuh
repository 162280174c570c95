// SPDX-License-Identifier: Apache-2.0
// A row's result from the sums of its parts.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"

namespace firstlight::cuda {

/// What a row's result is made of: the sums of its parts over exact pages, then those over codes.
struct PartSums {
  int n_exact, n_codes, first_codes;
  __device__ PartSums(const CodeSinglesParams& p, const RowCut& row) {
    n_exact = ceil_quotient((row.n_exact - 1) * p.exact_units + 1, row.per_part);
    first_codes = row.n_codes > 0 ? row.n_exact * p.exact_units / row.per_part : row.n_parts;
    n_codes = row.n_parts - first_codes;
  }
  __device__ __forceinline__ int n() const { return n_exact + n_codes; }
  /// Of the i-th: 2 part + {exact, codes}.
  __device__ __forceinline__ int at(int i) const { return i < n_exact ? 2 * i : 2 * (first_codes + i - n_exact) + 1; }
};

/// The weight of each sum in the row's result; a warp a head.
template <int kDim>
__device__ __forceinline__ void share_out(const CodeSinglesParams& p, const CodePart& part, const PartSums& sums,
                                          CodeShared<kDim>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = int64_t{p.head_blocks} * 2 * kHeadsAtOnce;  // from part to part
  const float2* first = CodePartials<kDim>(p, part.slot, part.head_block, 0).shares;
  for (int g = warp; g < part.n_heads; g += kCodeWarps) {
    constexpr int kEach = (kMostParts + 4) / 32 + 1;
    float2 each[kEach];
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = k * 32 + lane, at = sums.at(i);
      each[k] = i < sums.n() ? __ldcg(first + at / 2 * step + at % 2 * kHeadsAtOnce + g) : make_float2(-INFINITY, 0);
      top = fmaxf(top, each[k].x);
    }
#pragma unroll
    for (int k = 16; k > 0; k /= 2) top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, k));
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const float share = exp2f(each[k].x - top);
      shared.merge.shares[g][k * 32 + lane] = share;
      total += share * each[k].y;
    }
    total = warp_sum(total);
    if (lane == 0) shared.totals[g] = total;
  }
}

/// A row's result: its parts' sums, weighted; those over codes are rotated back.
template <int kDim>
__device__ void merge_parts(const CodeSinglesParams& p, const CodePart& part, int each, CodeShared<kDim>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  RowCut row(p, part.row.position);
  row.cut(each);
  const PartSums sums(p, row);
  share_out<kDim>(p, part, sums, shared);
  __syncthreads();
  const int64_t step = int64_t{p.head_blocks} * 2 * kHeadsAtOnce * kDim;
  const float* from = CodePartials<kDim>(p, part.slot, part.head_block, 0).sums;
  constexpr int kPieces = kHeadsAtOnce * kDim / (kCodeWarps * 128);  // of 4 values, of a thread
  float4 of_exact[kPieces] = {}, of_codes[kPieces] = {};
#pragma unroll 8
  for (int i = 0; i < sums.n(); ++i) {  // loads of 8 sums are under way together
    const int at = sums.at(i);
    const float* here = from + at / 2 * step + at % 2 * kHeadsAtOnce * kDim + threadIdx.x * 4;
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int g = (k * kCodeWarps * 128 + static_cast<int>(threadIdx.x) * 4) / kDim;
      if (g >= part.n_heads) continue;
      const float4 x = __ldcg(reinterpret_cast<const float4*>(here + k * kCodeWarps * 128));
      const float share = shared.merge.shares[g][i], e = at % 2 == 0 ? share : 0, c = at % 2 == 0 ? 0 : share;
      of_exact[k].x += e * x.x, of_exact[k].y += e * x.y, of_exact[k].z += e * x.z, of_exact[k].w += e * x.w;
      of_codes[k].x += c * x.x, of_codes[k].y += c * x.y, of_codes[k].z += c * x.z, of_codes[k].w += c * x.w;
    }
  }
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int at = k * kCodeWarps * 128 + static_cast<int>(threadIdx.x) * 4;
    *reinterpret_cast<float4*>(&shared.merge.exact[0][0] + at) = of_exact[k];
    *reinterpret_cast<float4*>(&shared.merge.rotated[0][0] + at) = of_codes[k];
  }
  __syncthreads();
  const AttendParams& a = p.codes.attend;
  for (int g = warp; g < part.n_heads; g += kCodeWarps) {
    float x[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = shared.merge.rotated[g][32 * j + lane];
    unrotate<kDim>(lane_signs<kDim>(p.codes.signs[2 * part.kv_head + 1]), x);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int64_t column = int64_t{part.first_head + g} * kDim + 32 * j + lane;
      const float value = (x[j] + shared.merge.exact[g][32 * j + lane]) / shared.totals[g];
      a.out.data[part.row.row * a.out.stride + column] = value;
      if (a.twin) a.twin[part.row.row * a.out.cols + column] = __float2bfloat16_rn(value);
    }
  }
  __syncthreads();
}

}  // namespace firstlight::cuda
