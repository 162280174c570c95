// SPDX-License-Identifier: Apache-2.0
// How single rows over codes are cut into parts, one a block, and how a row's parts are put together. A row's bits
// depend on its own length and its number of parts; the number follows from how much the whole batch has to read.
#pragma once
#include "firstlight/ops/attend_codes_pages_cuda.cuh"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

#ifndef TQ_WARPS
#define TQ_WARPS 4
#endif
inline constexpr int kCodeWarps = TQ_WARPS;

/// a / b rounded up, for 0 ≤ a < 2²³ and b > 0; the compiler's own division takes three times the instructions.
__device__ __forceinline__ int ceil_quotient(int a, int b) {
  const int n = a + b - 1, q = __float2int_rz(__fdividef(static_cast<float>(n), static_cast<float>(b))),
            rest = n - q * b;
  return q + static_cast<int>(rest >= b) - static_cast<int>(rest < 0);
}

/// What a row reads, in units of a page of codes: its exact pages come first, then the codes.
struct RowCut {
  int last, n_exact, n_codes, units, least, per_part = 1, n_parts = 1;
  __device__ RowCut(const CodeSinglesParams& p, int position) {
    last = position / kPageTokens;
    n_exact = min(last, static_cast<int>(kExactTail)) + 1;
    n_codes = last + 1 - n_exact;
    units = n_exact * p.exact_units + n_codes;
    least = p.exact_units;  // so that no part lies within an exact page
  }
  __device__ void cut(int each) {
    per_part = max(least, ceil_quotient(units, min(kMostParts, ceil_quotient(units, each))));
    n_parts = ceil_quotient(units, per_part);
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

/// Units for each part, so that the parts fill the GPU once, twice or three times, whichever takes the least time. A
/// warp's work; the same in all.
__device__ __forceinline__ int units_each(const CodeSinglesParams& p) {
  constexpr int kPartUnits = 6;  // what beginning and ending a part takes
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto units_of = [&](int r) { return r < p.n_rows ? RowCut(p, p.rows[r].position).units : 0; };
  const int first = units_of(lane);
  int units = first;
  for (int r = lane + 32; r < p.n_rows; r += 32) units += units_of(r);
  units = __reduce_add_sync(kWholeWarp, units);
  int best = 0x7fffffff, each_of_best = 0;
  for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
    const int room = rounds * p.held, least = max(p.exact_units, (units + room - 1) / room);
    each_of_best = best == 0x7fffffff ? least : each_of_best;
    for (int each = least; each <= least + least / 5; each += max(1, least / 16)) {
      int n = ceil_quotient(first, each);
      for (int r = lane + 32; r < p.n_rows; r += 32) n += ceil_quotient(units_of(r), each);
      if (__reduce_add_sync(kWholeWarp, n) > room) continue;
      if (rounds * (each + kPartUnits) < best) best = rounds * (each + kPartUnits), each_of_best = each;
      break;
    }
    if (p.n_rows == 1) break;
  }
  return each_of_best;
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
  union alignas(16) {
    float sums[kCodeWarps][kHeadsAtOnce][kStride];
    struct {
      float shares[kHeadsAtOnce][kMostParts + 32], exact[kHeadsAtOnce][kDim], rotated[kHeadsAtOnce][kDim];
    } merge;
    alignas(16) int8_t query[kHeadsAtOnce][2 * kDim];  ///< of 8 dimensions: 4 high bytes, 4 low; the same of the others
  };
  alignas(16) uint8_t scales[kCodeWarps][2][4 * kPageTokens];  ///< of this page and the next, keys' and values'
  ExpandTables tables[4];                                      ///< the same
  bool last;
};

/// The warps' sums, put down in shared memory, become the part's. All threads call.
template <int kDim>
__device__ void join_code_warps(const CodeSinglesParams& p, const CodePart& part, int which, CodeShared<kDim>& shared) {
  const CodePartials<kDim> partials(p, part.slot + part.part, part.head_block, which);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x) * 4; at < part.n_heads * kDim; at += kCodeWarps * 128) {
    const int g = at / kDim, i = at % kDim;
    float top = shared.maxima[0][g], total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 1; w < kCodeWarps; ++w) top = fmaxf(top, shared.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kCodeWarps; ++w) {
      const float share = exp2f(shared.maxima[w][g] - top);
      const float4 x = *reinterpret_cast<const float4*>(&shared.sums[w][g][i]);
      sum.x += share * x.x, sum.y += share * x.y, sum.z += share * x.z, sum.w += share * x.w;
      total += share * shared.divisors[w][g];
    }
    *reinterpret_cast<float4*>(partials.sums + at) = sum;
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
  __device__ __forceinline__ int at(int i) const {
    return i < n_exact ? 2 * i : 2 * (first_codes + i - n_exact) + 1;
  }
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
