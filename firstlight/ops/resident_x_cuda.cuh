// SPDX-License-Identifier: Apache-2.0
// A product's x inside a resident kernel. Who writes it leaves it in two bf16 terms, just as tensor cores take it: a
// warp's share of a group of stages is 16 or 32 loads a lane, and stays in registers for all units of the product. The
// norm before it is its weights, in the terms, and a scale, with which the sums are multiplied in the end. Code that
// runs once an operation is as slow as it is long: it comes from no cache, about 10 cycles an instruction (splitting x
// where it is read took 5 to 10 us).
#pragma once
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/resident_shared_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kGroup = 4;  ///< parts of stages whose x a lane holds at once
inline constexpr int kGroupColumns = kGroup * kPartColumns;

/// Where a lane's 8 columns of step s lie, from a part's first on: a warp has 128 of 1,024.
__device__ __forceinline__ int lane_column(int s) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  return warp * 128 + s * 32 + lane % 4 * 8;
}

/// Where a lane finds its operand. kFew: up to four rows of x; of the product's columns 0 to 3 take their high terms
/// and 4 to 7 their low ones. Else eight rows, whose low terms are products of their own.
template <bool kFew>
struct XAt {
  const __nv_bfloat16* from;
  int64_t to_low;
  int k;
  __device__ __forceinline__ XAt(const ResidentTerms& x, int rows) : to_low(int64_t{kMatvecRows} * x.k), k(x.k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = min(lane / 4 % (kFew ? 4 : 8), rows - 1);
    from = x.data + (kFew && lane >= 16 ? to_low : 0) + int64_t{row} * x.k;
  }
};

/// A lane's operand: of each step 8 values.
template <bool kFew>
struct LaneX {
  uint4 terms[kGroup][kPartSteps];
  uint4 low[kFew ? 1 : kGroup][kPartSteps];

  /// Part b becomes the one from k0 on. What lies behind k is multiplied by zeros, what is in rows that are not there
  /// goes nowhere: so any value will do, and the loads need no conditions.
  __device__ __forceinline__ void load(const XAt<kFew>& at, int k0, int b) {
#pragma unroll
    for (int s = 0; s < kPartSteps; ++s) {
      const int column = min(k0 + lane_column(s), at.k - 8);
      terms[b][s] = __ldcg(reinterpret_cast<const uint4*>(at.from + column));
      if constexpr (!kFew) low[b][s] = __ldcg(reinterpret_cast<const uint4*>(at.from + at.to_low + column));
    }
  }
};

/// The sum over a half of the warp, in all its lanes.
__device__ __forceinline__ float sum_sixteen(float x) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

/// The consumers' part of a split. A half warp takes 16 columns at a time.
__device__ __forceinline__ void run_split(const ResidentSplit& p) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, k = p.terms.k;
  for (int first = (static_cast<int>(blockIdx.x) * kResidentWarps + warp) * 32; first < k;
       first += static_cast<int>(gridDim.x) * kResidentWarps * 32) {
    const int column = first + lane;
    const bool there = column < k;
    const float weight = there && p.weights ? widen(p.weights[column]) : 1;
    for (int row = 0; row < p.rows; ++row) {
      const float x = there ? __ldcg(p.x + row * p.x_stride + column) : 0;
      if (there) put_terms(x * weight, p.terms.data + int64_t{row} * k + column, int64_t{kMatvecRows} * k);
      const float squares = sum_sixteen(x * x);
      if (there && p.terms.squares && lane % 16 == 0)
        p.terms.squares[row * p.terms.n_squares() + column / 16] = squares;
    }
  }
}

}  // namespace firstlight::cuda
