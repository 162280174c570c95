// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: a row's result is made of its items' sums, always in the same order.
#pragma once
#include "firstlight/ops/attend_join_cuda.cuh"

namespace firstlight::cuda {

/// Pieces that a block merges at once with a lane a section.
inline constexpr int kMergedAtOnce = kSinglesWarps * 32 / kSections;

/// Asks for pieces that are not there until all are: side by side, as one by one each would take a trip to L2.
template <int kMost>
__device__ __forceinline__ void wait_for_pieces(const ChunkPiece* from, int64_t pitch, PieceInFlight (&x)[kMost]) {
  for (bool all_there = false; !all_there;) {
    all_there = true;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (x[i].is_whole()) continue;
      x[i].load(from + i * pitch);
      all_there = false;
    }
  }
}

/// The same, but while none comes only the first is asked for: blocks without an item wait for a whole launch.
template <int kMost>
__device__ __forceinline__ void wait_in_turn(const ChunkPiece* from, int64_t pitch, PieceInFlight (&x)[kMost]) {
  for (int n_before = kMost + 1;;) {
    int n_missing = 0;
#pragma unroll
    for (int i = 0; i < kMost; ++i) n_missing += static_cast<int>(!x[i].is_whole());
    if (n_missing == 0) break;
    bool asks = true;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (!asks || x[i].is_whole()) continue;
      x[i].load(from + i * pitch);
      asks = n_missing < n_before;
    }
    n_before = n_missing;
  }
}

/// Takes `n` pieces, `pitch` apart, when they are there, and leaves their places clear; those above n stay empty.
template <int kMost>
__device__ __forceinline__ void take_pieces(ChunkPiece* from, int64_t pitch, int n, bool in_turn,
                                            PieceInFlight (&x)[kMost]) {
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < n) x[i].load(from + i * pitch);
  }
  in_turn ? wait_in_turn(from, pitch, x) : wait_for_pieces(from, pitch, x);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < n) PieceInFlight::clear(from + i * pitch);
  }
}

/// A row's piece of sections that are a chunk each, by one thread. `from`: where the piece of chunk 0 is.
__device__ __forceinline__ Running merge_chunks_of_piece(ChunkPiece* from, int64_t pitch, int n_chunks, bool in_turn) {
  PieceInFlight x[kSections];
  take_pieces(from, pitch, n_chunks, in_turn, x);
  Running sums[kSections];
#pragma unroll
  for (int i = 0; i < kSections; ++i) sums[i] = x[i].running();
#pragma unroll
  for (int step = 1; step < kSections; step *= 2) {
#pragma unroll
    for (int i = 0; i + step < kSections; i += 2 * step) sums[i].add(sums[i + step]);
  }
  return sums[0];
}

/// A row's piece by kSections neighbouring lanes, one a section, of which the first gets it.
__device__ __forceinline__ Running merge_sections_of_piece(ChunkPiece* from, int64_t pitch, const Cut& cut,
                                                           bool in_turn) {
  constexpr int kDeep = 4;
  const int section = static_cast<int>(threadIdx.x) % kSections, first = section * cut.per_section;
  const int end = min(first + cut.per_section, cut.n_chunks);
  Running sum;
  if (first < end && cut.is_in_one_item(first, end - 1)) {
    PieceInFlight x[1];
    take_pieces(from + first * pitch, pitch, 1, in_turn, x);
    sum = x[0].running();
  } else {
    for (int chunk = first; chunk < end; chunk += kDeep) {
      PieceInFlight x[kDeep];
      take_pieces(from + chunk * pitch, pitch, end - chunk, in_turn, x);
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        if (chunk + i < end) sum.add(x[i].sums, x[i].share.x, x[i].share.y);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int step = 1; step < kSections; step *= 2) sum.add(sum.of_lane(step));
  return sum;
}

/// Results of rows that several items share, from these items' sums: a block's share of the work, when it has no more
/// items. It waits for others' items, and no item waits for a merge. First come the blocks that had no item, then some
/// that had; the others may leave. No bit depends on who merges.
template <int kDim>
__device__ void merge_items(const SinglesParams& p, const SinglesPlan& plan) {
  const int n_blocks = static_cast<int>(gridDim.x);
  const int n_merges = p.n_rows * p.head_blocks, thread = static_cast<int>(threadIdx.x);
  const int n_parts = max(1, min(p.heads * (kDim / 4) / kMergedAtOnce, quotient(n_blocks, n_merges)));
  const int64_t pitch = p.heads * (kDim / 4);
  int job = static_cast<int>(blockIdx.x) - plan.n_items;
  if (job < 0) job += ceil_quotient(-job, n_blocks) * n_blocks;
  for (; job < n_merges * n_parts; job += n_blocks) {
    const int merge = quotient(job, n_parts), part = job - merge * n_parts;
    Item item;
    item.index = quotient(merge, p.head_blocks);
    item.row = p.rows[item.index];
    set_heads(p, merge - item.index * p.head_blocks, item);
    const Cut cut(p, item.row.position, plan.each);
    const int n = item.n_heads * (kDim / 4);
    // Crews without an item wait for long chunks: 32,768 keys take 34.0 us instead of 34.4, but 1 us more if chunks are
    // short.
    const bool in_turn = cut.per_chunk > 8;
    const int64_t column = int64_t{item.first_head} * kDim;
    ChunkPiece* const pieces = pieces_of(p, item);
    if (cut.n_items == 1 || (cut.per_section == 1 && part > 0)) continue;
    if (cut.per_section == 1) {
      for (int piece = thread; piece < n; piece += kSinglesWarps * 32) {
        const Running all = merge_chunks_of_piece(pieces + piece, pitch, cut.n_chunks, in_turn);
        deliver(p.attend, item.row, column + piece * 4, quotients(all.sums, all.total));
      }
      __syncwarp();
      continue;
    }
    for (int first = part * kMergedAtOnce; first < n; first += n_parts * kMergedAtOnce) {  // n is a multiple
      const int piece = first + thread / kSections;
      const Running all = merge_sections_of_piece(pieces + piece, pitch, cut, in_turn);
      if (thread % kSections == 0) deliver(p.attend, item.row, column + piece * 4, quotients(all.sums, all.total));
    }
  }
}

}  // namespace firstlight::cuda
