// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/bpe.h"

#include <algorithm>
#include <functional>

namespace firstlight {
namespace {

constexpr size_t kShort = 32;
constexpr uint32_t kEnd = UINT32_MAX;
constexpr int32_t kGone = -1;

}  // namespace

void Merger::merge(std::span<int32_t> symbols, std::vector<int32_t>& out) {
  if (symbols.size() < 2) {
    out.insert(out.end(), symbols.begin(), symbols.end());
  } else if (symbols.size() <= kShort) {
    merge_short(symbols, out);
  } else {
    merge_long(symbols, out);
  }
}

void Merger::merge_short(std::span<int32_t> symbols, std::vector<int32_t>& out) {
  Merge pairs[kShort];  // pairs[i]: what symbols i and i + 1 become
  size_t n = symbols.size();
  const auto look_up = [&](size_t i) {
    pairs[i] = merges_->find(static_cast<uint32_t>(symbols[i]), static_cast<uint32_t>(symbols[i + 1]));
  };
  for (size_t i = 0; i + 1 < n; ++i) look_up(i);
  while (n > 1) {
    const Merge* best = std::min_element(pairs, pairs + n - 1);  // the first of equals
    if (best->rank == MergeIndex::kNone) break;
    const auto at = static_cast<size_t>(best - pairs);
    symbols[at] = best->result;
    if (at + 2 < n) {
      std::copy(symbols.data() + at + 2, symbols.data() + n, symbols.data() + at + 1);
      std::copy(pairs + at + 2, pairs + n - 1, pairs + at + 1);
    }
    --n;
    if (at + 1 < n) look_up(at);
    if (at > 0) look_up(at - 1);
  }
  out.insert(out.end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(n));
}

void Merger::Bucket::push(uint32_t place) {
  if (next == places.size() || places.back() <= place) {
    places.push_back(place);
  } else {
    late.push_back(place);
    std::push_heap(late.begin(), late.end(), std::greater<>());
  }
}

uint32_t Merger::Bucket::pop() {
  if (next == places.size() || (!late.empty() && late.front() < places[next])) {
    const uint32_t place = late.front();
    std::pop_heap(late.begin(), late.end(), std::greater<>());
    late.pop_back();
    return place;
  }
  return places[next++];
}

void Merger::note_pair(const std::span<int32_t>& symbols, uint32_t left, uint32_t right) {
  const Merge merge = merges_->find(static_cast<uint32_t>(symbols[left]), static_cast<uint32_t>(symbols[right]));
  if (merge.rank == MergeIndex::kNone) return;
  if (merge.rank >= bucket_of_rank_.size()) bucket_of_rank_.resize(std::max<size_t>(merge.rank + 1, 1024));
  uint32_t& which = bucket_of_rank_[merge.rank];
  if (which == 0) {
    used_ranks_.push_back(merge.rank);
    which = static_cast<uint32_t>(used_ranks_.size());
    if (buckets_.size() < which) buckets_.emplace_back();
  }
  Bucket& bucket = buckets_[which - 1];
  if (bucket.empty()) {
    open_ranks_.push_back(merge.rank);
    std::push_heap(open_ranks_.begin(), open_ranks_.end(), std::greater<>());
  }
  bucket.push(left);
}

void Merger::merge_long(std::span<int32_t> symbols, std::vector<int32_t>& out) {
  if (symbols.size() >= kEnd) throw Error(ErrorKind::bad_input, "a piece of text of more than 4 billion characters");
  const auto n = static_cast<uint32_t>(symbols.size());
  next_.resize(n);
  previous_.resize(n);
  for (uint32_t i = 0; i < n; ++i) {
    next_[i] = i + 1 < n ? i + 1 : kEnd;
    previous_[i] = i > 0 ? i - 1 : kEnd;
  }
  for (uint32_t i = 0; i + 1 < n; ++i) note_pair(symbols, i, i + 1);

  while (!open_ranks_.empty()) {
    const uint32_t rank = open_ranks_.front();
    Bucket& bucket = buckets_[bucket_of_rank_[rank] - 1];
    const uint32_t left = bucket.pop();
    if (bucket.empty()) {
      std::pop_heap(open_ranks_.begin(), open_ranks_.end(), std::greater<>());
      open_ranks_.pop_back();
    }
    if (symbols[left] == kGone || next_[left] == kEnd) continue;
    const uint32_t right = next_[left];
    // One of the two may have merged with another neighbour since it was noted.
    const Merge merge = merges_->find(static_cast<uint32_t>(symbols[left]), static_cast<uint32_t>(symbols[right]));
    if (merge.rank != rank) continue;
    symbols[left] = merge.result;
    symbols[right] = kGone;
    next_[left] = next_[right];
    if (next_[left] != kEnd) previous_[next_[left]] = left;
    if (previous_[left] != kEnd) note_pair(symbols, previous_[left], left);
    if (next_[left] != kEnd) note_pair(symbols, left, next_[left]);
  }
  for (uint32_t i = 0; i != kEnd; i = next_[i]) out.push_back(symbols[i]);

  for (size_t i = 0; i < used_ranks_.size(); ++i) {
    bucket_of_rank_[used_ranks_[i]] = 0;
    buckets_[i].places.clear();
    buckets_[i].next = 0;
  }
  used_ranks_.clear();
}

}  // namespace firstlight
