// SPDX-License-Identifier: Apache-2.0
// The order of a conversion, decided before it begins: which rows are read when, which parts open and close, and how
// the memory is divided.
#pragma once
#include <cstdint>
#include <vector>

#include "firstlight/ckpt/shard_layout.h"

namespace firstlight {

/// One tp of a conversion.
struct CutTp {
  RankLayout layout;
  std::vector<std::vector<char>> live;  ///< [part][rank]: to be written (not kept from an earlier run)
  bool any_live(size_t part) const;
};

/// What the cutting thread does next.
struct CutStep {
  enum class Kind {
    open,       ///< part `part` of tp `tp`: files and headers
    band,       ///< rows [row_begin, row_end) of `tensor` → every tp that has it in a head, and into the stash
    tail,       ///< all of `tensor` from the stash → part `part` of tp `tp`
    tail_band,  ///< rows of a tail tensor too large for the stash, read again → part `part` of tp `tp`
    close,      ///< part `part` of tp `tp`
  };
  Kind kind = Kind::band;
  size_t tensor = 0;
  int64_t row_begin = 0, row_end = 0;
  bool stash = false;       ///< band: keep a copy for `tail` steps
  bool last_use = false;    ///< tail: the stashed copy is not needed any more
  size_t tp = 0, part = 0;  ///< indices
  bool reads() const { return kind == Kind::band || kind == Kind::tail_band; }
};

/// How many threads and bytes each stage gets. All buffers together: at most the memory given.
struct BufferPlan {
  int n_readers = 2, n_hashers = 1, n_writers = 4;
  uint64_t n_bands = 0, band_bytes = 0;    ///< band_bytes: of rows
  uint64_t band_stride() const;            ///< of a band's buffer
  uint64_t n_chunks = 0, chunk_bytes = 0;  ///< chunk_bytes: a multiple of 1 MiB
  uint64_t stash_bytes = 0;
  uint64_t total() const { return n_bands * band_stride() + n_chunks * chunk_bytes + stash_bytes; }
};

/// `n_open`: rank files open at once. Throws Error{bad_input} with the least that works if memory_bytes is too little.
BufferPlan plan_buffers(uint64_t memory_bytes, int n_threads, uint64_t n_open, uint64_t max_row_bytes);

std::vector<CutStep> schedule(const std::vector<StoredTensor>& tensors, const std::vector<CutTp>& tps,
                              const BufferPlan& buffers);

}  // namespace firstlight
