// SPDX-License-Identifier: Apache-2.0
// Byte-pair merging: of all neighbours that merge, the pair of lowest rank first, of equals the leftmost.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "firstlight/text/token_index.h"

namespace firstlight {

/// Holds the working memory of one call of encode, so that a text of many words allocates little. One thread at a time.
class Merger {
 public:
  explicit Merger(const MergeIndex& merges) : merges_(&merges) {}
  /// Merges `symbols` (which it may overwrite) until no neighbours merge, and appends what is left to `out`.
  /// Up to 32 symbols by scanning, more in time near n for any n (10 million equal symbols take about a second).
  void merge(std::span<int32_t> symbols, std::vector<int32_t>& out);

 private:
  /// The places where a pair of one rank was seen, lowest first.
  struct Bucket {
    std::vector<uint32_t> places;  // ascending, from `next` on
    std::vector<uint32_t> late;    // a heap of those that came out of order
    size_t next = 0;
    bool empty() const { return next == places.size() && late.empty(); }
    void push(uint32_t place);
    uint32_t pop();
  };

  void merge_short(std::span<int32_t> symbols, std::vector<int32_t>& out);
  void merge_long(std::span<int32_t> symbols, std::vector<int32_t>& out);
  void note_pair(const std::span<int32_t>& symbols, uint32_t left, uint32_t right);

  const MergeIndex* merges_;
  std::vector<uint32_t> bucket_of_rank_;  // 0: none, else index + 1; as long as the highest rank seen
  std::vector<uint32_t> used_ranks_;
  std::vector<Bucket> buckets_;       // the first used_ranks_.size() of them are in use
  std::vector<uint32_t> open_ranks_;  // heap of the ranks whose bucket is not empty
  std::vector<uint32_t> next_, previous_;
};

}  // namespace firstlight
