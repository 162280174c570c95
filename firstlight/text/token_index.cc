// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/token_index.h"

#include <cstring>

namespace firstlight {
namespace {

/// Chains of honest vocabularies stay below 200, so a longer one than this was made on purpose.
constexpr uint64_t kLongestChain = 4096;

/// At least n / fullness slots, a power of two.
uint64_t slots_for(size_t n, double fullness) {
  uint64_t slots = 16;
  while (static_cast<double>(slots) * fullness < static_cast<double>(n)) slots *= 2;
  return slots;
}

[[noreturn]] void refuse_collisions() {
  throw Error(ErrorKind::bad_input, "the vocabulary was made so that its tokens collide in every hash table");
}

}  // namespace

/// Tokens are 1 to 20 bytes: two overlapping reads of 8 bytes hash most of them without a loop.
uint64_t TokenIndex::hash(std::string_view text) {
  constexpr uint64_t kA = 0x9E3779B97F4A7C15u, kB = 0xC2B2AE3D27D4EB4Fu;
  const char* p = text.data();
  size_t n = text.size();
  uint64_t h = n * kB;
  const auto mix = [&](uint64_t word) {
    h = (h ^ word) * kA;
    h ^= h >> 29;
  };
  for (; n > 8; n -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    mix(word);
  }
  uint64_t word = 0;
  if (text.size() >= 8) {
    std::memcpy(&word, text.data() + text.size() - 8, 8);
  } else if (n >= 4) {
    uint32_t low, high;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + n - 4, 4);
    word = static_cast<uint64_t>(high) << 32 | low;
  } else if (n > 0) {
    const auto byte = [&](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(p[i])); };
    word = byte(0) | byte(n / 2) << 8 | byte(n - 1) << 16;
  }
  mix(word);
  h *= kB;
  return h ^ h >> 32;
}

// Tokens are looked up while the tokenizer is made, so that a small table is the fast one; merges are looked up for
// every pair of every text, mostly in vain, which wants a table at most half full.
TokenIndex::TokenIndex(const StringTable& table, size_t n)
    : table_(&table), slots_(slots_for(n, 0.75)), mask_(slots_.size() - 1), room_(n) {}

bool TokenIndex::insert(uint32_t id, uint64_t hash) {
  if (room_ == 0) throw Error(ErrorKind::bug, "more strings than the index has room for");
  const std::string_view text = (*table_)[id];
  const auto tag = static_cast<uint32_t>(hash >> 32);
  uint64_t i = hash & mask_;
  for (uint64_t chain = 0; slots_[i].id_plus_1 != 0; i = (i + 1) & mask_) {
    if (slots_[i].tag == tag && (*table_)[slots_[i].id_plus_1 - 1] == text) return false;
    if (++chain > kLongestChain) refuse_collisions();
  }
  slots_[i] = {id + 1, tag};
  --room_;
  return true;
}

int32_t TokenIndex::find(std::string_view text, uint64_t hash) const {
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (uint64_t i = hash & mask_; slots_[i].id_plus_1 != 0; i = (i + 1) & mask_) {
    const Slot slot = slots_[i];
    if (slot.tag == tag && (*table_)[slot.id_plus_1 - 1] == text) return static_cast<int32_t>(slot.id_plus_1 - 1);
  }
  return -1;
}

MergeIndex::MergeIndex(size_t n) : slots_(slots_for(n, 0.5)), mask_(slots_.size() - 1), room_(n) {}

void MergeIndex::insert(uint32_t left, uint32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  uint64_t i = hash(key) & mask_;
  for (uint64_t chain = 0; slots_[i].rank != kNone; i = (i + 1) & mask_) {
    if (slots_[i].key == key) {
      slots_[i] = {key, merge.rank, merge.result};
      return;
    }
    if (++chain > kLongestChain) refuse_collisions();
  }
  if (room_ == 0) throw Error(ErrorKind::bug, "more merges than the index has room for");
  slots_[i] = {key, merge.rank, merge.result};
  --room_;
}

}  // namespace firstlight
