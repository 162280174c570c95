// SPDX-License-Identifier: Apache-2.0
// The table of parts of a pass's single rows over codes, which is the same for all layers. Where each block worked its
// parts out itself, 5 us passed before it asked for its first page; with the table 2.1 do.
#include "firstlight/ops/attend_codes_parts_cuda.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kThreads = 1024;

/// Units for each part, so that the parts fill the GPU once, twice or three times, whichever takes the least time. A
/// warp's work; the same in all.
__device__ int units_of_parts(const CodeSinglesParams& p) {
  const int kPartUnits = 6 / code_blocks(p.group <= kSetHeads ? 1 : 2);  // what beginning and ending a part takes
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto units_of = [&](int r) { return r < p.n_rows ? RowCut(p.exact_units, p.rows[r].position).units : 0; };
  const int first = units_of(lane);
  int units = first;
  for (int r = lane + 32; r < p.n_rows; r += 32) units += units_of(r);
  units = __reduce_add_sync(kWholeWarp, units);
  int each = 0, best = 0x7fffffff;
  for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
    const int room = rounds * p.held, least = max(p.exact_units, (units + room - 1) / room);
    if (each == 0) each = least;
    for (int more = least; more <= least + least / 5; more += max(1, least / 16)) {
      int n = ceil_quotient(first, more);
      for (int r = lane + 32; r < p.n_rows; r += 32) n += ceil_quotient(units_of(r), more);
      n = __reduce_add_sync(kWholeWarp, n);
      if (n > room) continue;
      if (rounds * (more + kPartUnits) < best) best = rounds * (more + kPartUnits), each = more;
      break;
    }
    if (p.n_rows == 1) break;
  }
  return each;
}

struct CutRow : RowCut {
  int exact_units, per_part, n_parts;
  /// No part lies within an exact page.
  __device__ CutRow(int exact_units, int position, int each) : RowCut(exact_units, position), exact_units(exact_units) {
    per_part = max(exact_units, ceil_quotient(units, min(kMostParts, ceil_quotient(units, each))));
    n_parts = ceil_quotient(units, per_part);
  }
  /// Exact pages that begin in parts before this one, and the same of pages of codes.
  __device__ int exact_before(int part) const {
    return min(n_exact, (part * per_part + exact_units - 1) / exact_units);
  }
  __device__ int codes_before(int part) const { return min(n_codes, max(0, part * per_part - n_exact * exact_units)); }
};

/// A warp's work: where the row's first part is among all; rows of one lane follow those of the lane before.
__device__ int first_slot(const CodeSinglesParams& p, int each, int index) {
  int before = 0;
  for (int r = static_cast<int>(threadIdx.x) % 32; r < index; r += 32)
    before += CutRow(p.exact_units, p.rows[r].position, each).n_parts;
  return __reduce_add_sync(kWholeWarp, before);
}

__global__ void __launch_bounds__(kThreads) plan_code_parts_kernel(const __grid_constant__ CodeSinglesParams p) {
  __shared__ int each, n_slots;
  wait_for_predecessor();  // which may read the table; no successor starts before this ends: layers read it unasked
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (warp == 0) {
    const int units = units_of_parts(p), n = first_slot(p, units, p.n_rows);
    if (lane == 0) each = units, n_slots = n;
  }
  __syncthreads();
  // A block that waits for parts behind its own must not have one of them to do.
  const bool together = n_slots * p.head_blocks <= p.n_blocks;
  for (int r = warp; r < p.n_rows; r += kThreads / 32) {
    const int slot = first_slot(p, each, r);
    const CutRow row(p.exact_units, p.rows[r].position, each);
    for (int i = lane; i < row.n_parts; i += 32) {
      const int exact_begin = row.exact_before(i), exact_end = row.exact_before(i + 1);
      int n_pieces = (exact_end - exact_begin) * kPagePieces;
      if (n_pieces > 0 && exact_end == row.n_exact)
        n_pieces -= kPagePieces - 1 - p.rows[r].position % kPageTokens / kPieceTokens;
      p.parts[slot + i] = {p.rows[r],
                           r,
                           i,
                           row.n_parts,
                           slot,
                           exact_begin,
                           n_pieces,
                           1 + row.codes_before(i),
                           1 + row.codes_before(i + 1),
                           together ? min(row.n_parts, kMostMerging) : 1,
                           0,
                           0,
                           0};
    }
  }
  for (int i = n_slots + static_cast<int>(threadIdx.x); i < p.most_parts; i += kThreads) p.parts[i] = {};
  __threadfence();
}

}  // namespace

void plan_code_parts(const CodeSinglesParams& p, cudaStream_t stream) {
  launch("plan of attention over codes", plan_code_parts_kernel, dim3(1), kThreads, 0, stream, p);
}

}  // namespace firstlight::cuda
