// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: in which order chunks' sums become a row's. Chunks are added up in sections, runs of
// neighbours, each in order; then the sections, neighbours first. So a block that has a section's chunks, or all of a
// row's, adds them up in registers and passes one sum on, or none, and gives the bits that whoever merges would give.
#pragma once
#include <cmath>

#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

/// What is added up of chunks. Every operation is named, so that all who add give the same bits.
struct Running {
  float4 sums = {};
  float top = -INFINITY, total = 0;
  __device__ __forceinline__ void add(const float4& x, float maximum, float divisor) {
    const float either = fmaxf(top, maximum), base = either == -INFINITY ? 0 : either;
    const float mine = power_of_two(top - base), its = power_of_two(maximum - base);
    const auto sum = [&](float a, float b) { return __fmaf_rn(b, its, __fmul_rn(a, mine)); };
    sums = make_float4(sum(sums.x, x.x), sum(sums.y, x.y), sum(sums.z, x.z), sum(sums.w, x.w));
    total = sum(total, divisor);
    top = either;
  }
  /// Nothing is added of a section that is not there: not even zeros, which would turn -0 into 0.
  __device__ __forceinline__ void add(const Running& other) {
    if (other.top != -INFINITY) add(other.sums, other.top, other.total);
  }
  __device__ __forceinline__ Running of_lane(int step) const {
    Running x;
    x.sums.x = __shfl_down_sync(0xffffffffu, sums.x, step), x.sums.y = __shfl_down_sync(0xffffffffu, sums.y, step);
    x.sums.z = __shfl_down_sync(0xffffffffu, sums.z, step), x.sums.w = __shfl_down_sync(0xffffffffu, sums.w, step);
    x.top = __shfl_down_sync(0xffffffffu, top, step), x.total = __shfl_down_sync(0xffffffffu, total, step);
    return x;
  }
};

inline constexpr int kSectionLevels = 3, kSections = 1 << kSectionLevels;  ///< of a row at most

/// A row's sections, added up as they come: level l holds a sum of 2^l neighbours that waits for those behind it.
class SectionTree {
 public:
  /// `section` is the next one; the last makes `sum` the row's.
  __device__ __forceinline__ void add(int section, bool last, Running& sum) {
    bool waits = false;
#pragma unroll
    for (int l = 0; l < kSectionLevels; ++l) {
      if (waits) continue;
      if (section >> l & 1) {
        Running both = levels_[l];
        both.add(sum);
        sum = both;
      } else if (!last) {
        levels_[l] = sum;
        waits = true;
      }
    }
  }

 private:
  Running levels_[kSectionLevels];
};

}  // namespace firstlight::cuda
