// SPDX-License-Identifier: Apache-2.0
// A pass's ids, rows and page tables at fixed device addresses, sent in one copy when the pass begins.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/ops.h"

namespace firstlight::cuda {

/// A row of a set of spans, as kernels see it.
struct alignas(16) RowOnDevice {
  int32_t row;       ///< in the matrices
  int32_t position;  ///< in its sequence: keys 0 to position are visible
  int32_t pages;     ///< where its sequence's pages begin in the table of pages
  int32_t angle;     ///< its index within the set: where its angles lie
};

/// Up to 64 consecutive rows of one span, attended to together.
struct alignas(16) TileOnDevice {
  int32_t row, n_rows, position, pages, exact_from;
};

/// Spans with fewer rows go row by row, the others by tiles: a question of the span alone, so that a sequence's bits do
/// not depend on what shares its batch.
inline constexpr int64_t kTiledRows = 8;
inline constexpr int64_t kTileRows = 64;

/// One set of spans (all of the pass, or the wanted ones).
/// Rows whose logits are computed at once: 33 MB of a vocabulary of 128,256. As many whatever is made of them, so that
/// a product's bits do not depend on that.
inline constexpr int64_t kLogitRows = 64;

struct RowSet {
  const AttentionSpan* spans = nullptr;  ///< the caller's: how the set is told from others
  size_t n_spans = 0;
  int n_rows = 0, n_single = 0, n_tiles = 0;
  int64_t n_pages_single = 0;            ///< the most pages that a single row sees
  bool in_place = false;                 ///< rows 0, 1, 2 …
  bool reads_codes = false;              ///< a tile does, of pages of codes
  bool reads_exactly = false;            ///< AttentionSpan::exact_from is asked for
  bool alone = false;                    ///< each row is its sequence's only one: none reads what another stores
  const RowOnDevice* rows = nullptr;     ///< n_rows
  const RowOnDevice* singles = nullptr;  ///< n_single: those attended to one by one
  const TileOnDevice* tiles = nullptr;   ///< n_tiles, the dearest first
};

class PassTables {
 public:
  /// Takes the pass over and sends it on `stream`. True if the device addresses are new.
  bool send(const PassRows& rows, cudaStream_t stream);
  /// The set these spans are; Error{bug} for spans that are neither set of the pass.
  const RowSet& find(std::span<const AttentionSpan> spans) const;
  /// Error{bug} if these are not the pass's.
  const int32_t* ids(std::span<const int> ids) const;
  const int32_t* pages() const { return pages_; }
  /// Beside each of pages() its exact page; only of spans that have such.
  const int32_t* exact() const { return pages_ + page_capacity_; }
  const RowSet& all() const { return sets_[0]; }
  const RowSet& wanted() const { return sets_[1]; }
  /// Single rows alone, all of them wanted: the two sets are one on the device, so that what was worked out for one
  /// (how rows are cut) is known of the other.
  bool wants_all() const { return sets_[0].n_rows > 0 && sets_[1].rows == sets_[0].rows; }

 private:
  bool reserve(int64_t n_rows, int64_t n_pages, cudaStream_t stream);
  uint64_t row_bytes() const;
  void list(std::span<const AttentionSpan> spans, int set);
  void make_one();  // of the two sets, if they can be

  int64_t row_capacity_ = 0, page_capacity_ = 0;
  DeviceScratch device_;
  PinnedScratch host_;
  RowSet sets_[2];
  const int* caller_ids_ = nullptr;
  size_t n_ids_ = 0;
  const int32_t* pages_ = nullptr;
  std::vector<std::pair<const int32_t*, int32_t>> known_pages_;  // a sequence's table, and where its copy begins
};

}  // namespace firstlight::cuda
