// SPDX-License-Identifier: Apache-2.0
// A row's result from the sums of its parts.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"

namespace firstlight::cuda {

/// What a row's result is made of: the sums of its parts over exact pages, then those over codes.
struct PartSums {
  int n_exact, n_codes, first_codes;
  __device__ PartSums(const CodeSinglesParams& p, const CodePart& part) {
    const RowCut row(p.exact_units, part.row.position);
    n_exact = ceil_quotient((row.n_exact - 1) * p.exact_units + 1, part.per_part);
    first_codes = row.n_codes > 0 ? row.n_exact * p.exact_units / part.per_part : part.n_parts;
    n_codes = part.n_parts - first_codes;
  }
  __device__ __forceinline__ int n() const { return n_exact + n_codes; }
  /// Of the i-th: 2 part + {exact, codes}.
  __device__ __forceinline__ int at(int i) const { return i < n_exact ? 2 * i : 2 * (first_codes + i - n_exact) + 1; }
};

/// The weight of each sum in the row's result; a warp a head.
template <int kDim, int kWarps>
__device__ __forceinline__ void share_out(const CodeSinglesParams& p, const CodePart& part, const PartSums& sums,
                                          CodeShared<kDim, kWarps>& shared, CodeMeeting<kDim, kWarps>& meeting) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = int64_t{p.head_blocks} * 2 * kHeadsAtOnce;  // from part to part
  const float2* first = CodePartials<kDim>(p, part.slot, part.head_block, 0).shares;
  for (int g = warp; g < part.n_heads; g += kWarps) {
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
      meeting.merge.shares[g][k * 32 + lane] = share;
      total += share * each[k].y;
    }
    total = warp_sum(total);
    if (lane == 0) shared.totals[g] = total;
  }
}

/// A row's result: its parts' sums, weighted; those over codes are rotated back. Threads add up every kGroups-th sum.
template <int kDim, int kSets, int kWarps>
__device__ void merge_parts(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim, kWarps>& shared,
                            CodeMeeting<kDim, kWarps>& meeting) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const PartSums sums(p, part);
  share_out(p, part, sums, shared, meeting);
  __syncthreads();
  constexpr int kValues = kSetHeads * kSets * kDim, kThreads = kValues / 4, kGroups = kWarps * 32 / kThreads;
  static_assert(kGroups >= 1 && kGroups * kValues <= sizeof meeting.merge.exact / sizeof(float));
  const int group = static_cast<int>(threadIdx.x) / kThreads, at = static_cast<int>(threadIdx.x) % kThreads * 4,
            g = at / kDim;
  if (group < kGroups && g < part.n_heads) {
    const int64_t step = int64_t{p.head_blocks} * 2 * kHeadsAtOnce * kDim;
    const float* from = CodePartials<kDim>(p, part.slot, part.head_block, 0).sums + at;
    float4 of_exact = {}, of_codes = {};
#pragma unroll 8
    for (int i = group; i < sums.n(); i += kGroups) {  // loads of 8 sums are under way together
      const int which = sums.at(i);
      const float4 x =
          __ldcg(reinterpret_cast<const float4*>(from + which / 2 * step + which % 2 * kHeadsAtOnce * kDim));
      const float share = meeting.merge.shares[g][i], e = which % 2 == 0 ? share : 0, c = which % 2 == 0 ? 0 : share;
      of_exact.x += e * x.x, of_exact.y += e * x.y, of_exact.z += e * x.z, of_exact.w += e * x.w;
      of_codes.x += c * x.x, of_codes.y += c * x.y, of_codes.z += c * x.z, of_codes.w += c * x.w;
    }
    *reinterpret_cast<float4*>(&meeting.merge.exact[group * kValues + at]) = of_exact;
    *reinterpret_cast<float4*>(&meeting.merge.rotated[group * kValues + at]) = of_codes;
  }
  __syncthreads();
  const AttendParams& a = p.codes.attend;
  for (int h = warp; h < part.n_heads; h += kWarps) {
    float x[kDim / 32], exact[kDim / 32], mean[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      mean[j] = mean_of(a.kv, 1, part.kv_head, 32 * j + lane);  // asked for where it is used it takes .7 to 1 us more
      x[j] = exact[j] = 0;
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        x[j] += meeting.merge.rotated[k * kValues + h * kDim + 32 * j + lane];
        exact[j] += meeting.merge.exact[k * kValues + h * kDim + 32 * j + lane];
      }
    }
    unrotate<kDim>(lane_signs<kDim>(p.codes.signs[2 * part.kv_head + 1]), x);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int64_t column = int64_t{part.first_head + h} * kDim + 32 * j + lane;
      const float value = (x[j] + exact[j]) / shared.totals[h] + mean[j];
      a.out.data[part.row.row * a.out.stride + column] = value;
      if (a.twin) a.twin[part.row.row * a.out.cols + column] = __float2bfloat16_rn(value);
    }
  }
  __syncthreads();
}

}  // namespace firstlight::cuda
