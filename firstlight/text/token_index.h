// SPDX-License-Identifier: Apache-2.0
// The two look-ups of a tokenizer, flat and open-addressed: token string → id, and pair of ids → merge.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "firstlight/text/string_table.h"

namespace firstlight {

/// Strings of a table → their index in it. The table must outlive the index and keep its strings.
class TokenIndex {
 public:
  /// Makes room for n strings.
  TokenIndex(const StringTable& table, size_t n);
  /// False if the string is there already. Throws Error{bad_input} for more than n strings, and for a set of strings
  /// made to collide.
  bool insert(uint32_t id) { return insert(id, hash((*table_)[id])); }
  bool insert(uint32_t id, uint64_t hash);
  /// -1 if there is none.
  int32_t find(std::string_view text) const { return find(text, hash(text)); }
  int32_t find(std::string_view text, uint64_t hash) const;

  /// Who looks up many strings in turn hashes and prefetches some of them ahead.
  static uint64_t hash(std::string_view text);
  void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }

 private:
  struct Slot {
    uint32_t id_plus_1 = 0, tag = 0;
  };
  const StringTable* table_;
  std::vector<Slot> slots_;
  uint64_t mask_;
  size_t room_;
};

/// What two neighbours become, and when: lower ranks first.
struct Merge {
  uint32_t rank = 0;
  int32_t result = -1;
  bool operator<(const Merge& other) const { return rank < other.rank; }
};

class MergeIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;  ///< rank of a pair that does not merge

  /// Makes room for n pairs.
  explicit MergeIndex(size_t n = 0);
  /// A pair given twice keeps its last merge, as tokenizers does.
  void insert(uint32_t left, uint32_t right, Merge merge);
  void prefetch(uint32_t left, uint32_t right) const { __builtin_prefetch(&slots_[hash(key_of(left, right)) & mask_]); }
  Merge find(uint32_t left, uint32_t right) const {
    const uint64_t key = key_of(left, right);
    for (uint64_t i = hash(key) & mask_;; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.rank == kNone) return {kNone, -1};
      if (slot.key == key) return {slot.rank, slot.result};
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t rank = kNone;
    int32_t result = -1;
  };
  static uint64_t key_of(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }
  static uint64_t hash(uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return key ^ key >> 32;
  }
  std::vector<Slot> slots_;
  uint64_t mask_;
  size_t room_;
};

}  // namespace firstlight
