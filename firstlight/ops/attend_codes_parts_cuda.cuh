// SPDX-License-Identifier: Apache-2.0
// How single rows over codes are cut into parts, one a block, and how a row's parts are put together. A row's bits
// depend on its own length and its number of parts; the number follows from how much the whole batch has to read.
#pragma once
#include "firstlight/ops/attend_codes_pages_cuda.cuh"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

inline constexpr int kCodeWarps = 4;

/// What a row reads, in units of a page of codes: its exact pages come first, then the codes.
struct RowCut {
  int last, n_exact, n_codes, units, per_part = 1, n_parts = 1;
  __device__ RowCut(const CodeSinglesParams& p, int position) {
    last = position / kPageTokens;
    n_exact = min(last, static_cast<int>(kExactTail)) + 1;
    n_codes = last + 1 - n_exact;
    units = n_exact * p.exact_units + n_codes;
  }
  __device__ void cut(int each) {
    const int wanted = min(kMostParts, (units + each - 1) / each);
    per_part = (units + wanted - 1) / wanted;
    n_parts = (units + per_part - 1) / per_part;
  }
  /// Exact pages that begin in parts before this one, and the same of pages of codes.
  __device__ int exact_before(const CodeSinglesParams& p, int part) const {
    return min(n_exact, (part * per_part + p.exact_units - 1) / p.exact_units);
  }
  __device__ int codes_before(const CodeSinglesParams& p, int part) const {
    return min(n_codes, max(0, part * per_part - n_exact * p.exact_units));
  }
  __device__ int exact_page(int i) const { return i == 0 ? 0 : last - n_exact + 1 + i; }
};

/// What a block works on.
struct CodePart {
  RowOnDevice row;
  int index;  ///< of the row in its set
  int part, n_parts;
  int slot;  ///< of the row's first part among all
  int kv_head, first_head, n_heads, head_block;
  int exact_begin, exact_end;  ///< of the row's exact pages
  int begin, end;              ///< pages of codes
};

/// Units for each part, so that all parts are under way at once, if they can be. A warp's work; the same in all.
__device__ __forceinline__ int units_each(const CodeSinglesParams& p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int units = 0;
  for (int r = lane; r < p.n_rows; r += 32) units += RowCut(p, p.rows[r].position).units;
  const int least = max(p.exact_units, (__reduce_add_sync(kWholeWarp, units) + p.held - 1) / p.held);
  const int step = max(1, least / 16);
  for (int each = least; each <= least + 8 * step; each += step) {
    int n = 0;
    for (int r = lane; r < p.n_rows; r += 32) {
      RowCut row(p, p.rows[r].position);
      row.cut(each);
      n += row.n_parts;
    }
    if (__reduce_add_sync(kWholeWarp, n) <= p.held) return each;
  }
  return least;
}

/// Part `number` of all (rows in order, all blocks of heads of a part side by side); false if there are fewer.
__device__ __forceinline__ bool find_part(const CodeSinglesParams& p, int each, int number, CodePart& part) {
  const int lane = static_cast<int>(threadIdx.x) % 32, wanted = number / p.head_blocks;
  for (int first = 0, before = 0; first < p.n_rows; first += 32) {
    int n = 0;
    if (first + lane < p.n_rows) {
      RowCut row(p, p.rows[first + lane].position);
      row.cut(each);
      n = row.n_parts;
    }
    int up_to = n;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kWholeWarp, up_to, step);
      if (lane >= step) up_to += other;
    }
    const int total = __shfl_sync(kWholeWarp, up_to, 31);
    if (wanted >= before + total) {
      before += total;
      continue;
    }
    const int which = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, before + up_to > wanted))) - 1;
    part.slot = before + __shfl_sync(kWholeWarp, up_to - n, which);
    part.part = wanted - part.slot;
    part.index = first + which;
    part.row = p.rows[part.index];
    RowCut row(p, part.row.position);
    row.cut(each);
    part.n_parts = row.n_parts;
    part.exact_begin = row.exact_before(p, part.part);
    part.exact_end = row.exact_before(p, part.part + 1);
    part.begin = 1 + row.codes_before(p, part.part);
    part.end = 1 + row.codes_before(p, part.part + 1);
    part.head_block = number % p.head_blocks;
    part.kv_head = part.head_block / p.of_group;
    const int in_group = part.head_block % p.of_group * kHeadsAtOnce;
    part.first_head = part.kv_head * p.group + in_group;
    part.n_heads = min(kHeadsAtOnce, p.group - in_group);
    return true;
  }
  return false;
}

/// Where sums wait: of a part, over its exact pages (which 0) or its codes (1).
template <int kDim>
struct CodePartials {
  float* sums;
  float2* shares;  ///< maximum (in powers of two) and divisor
  __device__ CodePartials(const CodeSinglesParams& p, int slot, int head_block, int which) {
    const int64_t at = (int64_t{slot} * p.head_blocks + head_block) * 2 + which;
    const int64_t n = int64_t{p.most_parts} * p.head_blocks * 2 * kHeadsAtOnce;
    sums = p.partials + at * kHeadsAtOnce * kDim;
    shares = reinterpret_cast<float2*>(p.partials + n * kDim) + at * kHeadsAtOnce;
  }
};

/// Shared memory of a block.
template <int kDim>
struct CodeShared {
  static constexpr int kStride = kDim + 4;
  float maxima[kCodeWarps][kHeadsAtOnce], divisors[kCodeWarps][kHeadsAtOnce], units[kHeadsAtOnce], totals[kHeadsAtOnce];
  union {
    float sums[kCodeWarps][kHeadsAtOnce][kStride];
    struct {
      float shares[kHeadsAtOnce][2 * kMostParts], exact[kHeadsAtOnce][kDim], rotated[kHeadsAtOnce][kDim];
    } merge;
    alignas(16) int8_t query[kHeadsAtOnce][2 * kDim];  ///< of 8 dimensions: 4 high bytes, 4 low; the same of the others
  };
  alignas(16) uint8_t scales[kCodeWarps][2][4 * kPageTokens];  ///< of this page and the next, keys' and values'
  ExpandTables tables;
  bool last;
};

/// The warps' sums, put down in shared memory, become the part's. All threads call.
template <int kDim>
__device__ void join_code_warps(const CodeSinglesParams& p, const CodePart& part, int which, CodeShared<kDim>& shared) {
  const CodePartials<kDim> partials(p, part.slot + part.part, part.head_block, which);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < part.n_heads * kDim; at += kCodeWarps * 32) {
    const int g = at / kDim, i = at % kDim;
    float top = shared.maxima[0][g], sum = 0, total = 0;
#pragma unroll
    for (int w = 1; w < kCodeWarps; ++w) top = fmaxf(top, shared.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kCodeWarps; ++w) {
      const float share = exp2f(shared.maxima[w][g] - top);
      sum += share * shared.sums[w][g][i];
      total += share * shared.divisors[w][g];
    }
    partials.sums[at] = sum;
    if (i == 0) partials.shares[g] = make_float2(top, total);
  }
  __syncthreads();
}

/// True in the block that comes last of a row's: all its parts' sums are there.
template <int kDim>
__device__ __forceinline__ bool comes_last(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim>& shared) {
  if (threadIdx.x == 0) {
    unsigned* arrivals = p.arrivals + int64_t{part.index} * p.head_blocks + part.head_block;
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    shared.last = before + 1 == static_cast<unsigned>(part.n_parts);
    if (shared.last) *arrivals = 0;
  }
  __syncthreads();
  return shared.last;
}

/// A row's result: its parts' sums, weighted; those over codes are rotated back.
template <int kDim>
__device__ void merge_parts(const CodeSinglesParams& p, const CodePart& part, int each, CodeShared<kDim>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  RowCut row(p, part.row.position);
  row.cut(each);
  const auto there = [&](int which, int c) {
    return which == 0 ? row.exact_before(p, c) < row.exact_before(p, c + 1)
                      : row.codes_before(p, c) < row.codes_before(p, c + 1);
  };
  for (int g = warp; g < part.n_heads; g += kCodeWarps) {
    float top = -INFINITY, total = 0;
    for (int k = lane; k < 2 * part.n_parts; k += 32) {
      if (there(k % 2, k / 2))
        top = fmaxf(top, __ldcg(&CodePartials<kDim>(p, part.slot + k / 2, part.head_block, k % 2).shares[g]).x);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, step));
    for (int k = lane; k < 2 * part.n_parts; k += 32) {
      float2 one = make_float2(-INFINITY, 0);
      if (there(k % 2, k / 2))
        one = __ldcg(&CodePartials<kDim>(p, part.slot + k / 2, part.head_block, k % 2).shares[g]);
      const float share = exp2f(one.x - top);
      shared.merge.shares[g][k] = share;
      total += share * one.y;
    }
    total = warp_sum(total);
    if (lane == 0) shared.totals[g] = total;
  }
  __syncthreads();
  const int64_t step = int64_t{p.head_blocks} * 2 * kHeadsAtOnce * kDim;
  for (int at = static_cast<int>(threadIdx.x); at < part.n_heads * kDim; at += kCodeWarps * 32) {
    const int g = at / kDim, i = at % kDim;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float* from = CodePartials<kDim>(p, part.slot, part.head_block, which).sums + at;
      float sum = 0;
#pragma unroll 8
      for (int c = 0; c < part.n_parts; ++c) {
        const float share = shared.merge.shares[g][2 * c + which];
        if (share > 0) sum += share * __ldcg(from + c * step);  // 0: nothing was written there
      }
      (which == 0 ? shared.merge.exact : shared.merge.rotated)[g][i] = sum;
    }
  }
  __syncthreads();
  const AttendParams& a = p.codes.attend;
  for (int g = warp; g < part.n_heads; g += kCodeWarps) {
    float x[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = shared.merge.rotated[g][32 * j + lane];
    unrotate<kDim>(p.codes.signs[2 * part.kv_head + 1], x);
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
