// SPDX-License-Identifier: Apache-2.0
// How single rows over codes are cut into parts, one a block, and how a row's parts are put together. A row's bits
// depend on its own length and its number of parts; the number follows from how much the whole batch has to read.
#pragma once
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

/// Bytes of a half of a page: keys, or values and all scales.
__host__ __device__ constexpr int ring_pitch(const tq::PageShape& shape) {
  const int keys = shape.values_at(), rest = shape.bytes() - keys;
  return keys > rest ? keys : rest;
}
/// Warps of a block, of at most 128 or 168 registers a thread: 16, but 12 for one set of heads, which has fewer
/// instructions and wants no spills; 8 where halves are large, so that shared memory has room.
__host__ __device__ constexpr int code_warps(const tq::PageShape& shape, int n_sets) {
  return ring_pitch(shape) > 4352 ? 8 : n_sets == 1 ? 12 : 16;
}
/// Halves that a warp has in shared memory or on their way there. More on their way is not better: with three of 4 KiB
/// for each of 16 warps 32 x 32,768 keys took 320 us, with two 296.
__host__ __device__ constexpr int ring_depth(const tq::PageShape& shape, int n_sets) {
  return code_warps(shape, n_sets) == 16 && ring_pitch(shape) == 4352 ? 2 : 3;
}
inline constexpr int kMostDeep = 3;
inline constexpr int kSetHeads = 4;  ///< heads that are computed at once; a block takes one set or two

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

/// Units for each part, so that the parts fill the GPU once, twice or three times, whichever takes the least time.
struct CodePlan {
  int each, n_parts;  ///< there are no more parts than that

  /// A warp's work; the same in all.
  __device__ __forceinline__ explicit CodePlan(const CodeSinglesParams& p) {
    constexpr int kPartUnits = 6;  // what beginning and ending a part takes
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto units_of = [&](int r) { return r < p.n_rows ? RowCut(p, p.rows[r].position).units : 0; };
    const int first = units_of(lane);
    int units = first;
    for (int r = lane + 32; r < p.n_rows; r += 32) units += units_of(r);
    units = __reduce_add_sync(kWholeWarp, units);
    each = 0, n_parts = p.most_parts;
    int best = 0x7fffffff;
    for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
      const int room = rounds * p.held, least = max(p.exact_units, (units + room - 1) / room);
      if (each == 0) each = least;
      for (int more = least; more <= least + least / 5; more += max(1, least / 16)) {
        int n = ceil_quotient(first, more);
        for (int r = lane + 32; r < p.n_rows; r += 32) n += ceil_quotient(units_of(r), more);
        n = __reduce_add_sync(kWholeWarp, n);
        if (n > room) continue;
        if (rounds * (more + kPartUnits) < best) best = rounds * (more + kPartUnits), each = more, n_parts = n;
        break;
      }
      if (p.n_rows == 1) break;
    }
  }
};

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

}  // namespace firstlight::cuda
