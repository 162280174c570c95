// SPDX-License-Identifier: Apache-2.0
// XXH3-64 (default secret, seed 0, inputs of 241 bytes and more) taken apart for 32 lanes. The published algorithm adds
// 16 stripes of 64 bytes to eight accumulators, then scrambles these, block after block of 1 KiB. Additions commute: so
// the sum of each block can be taken by any lanes at any time, and only the scrambles form a chain.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "firstlight/base/host_device.h"

namespace firstlight::xxh3 {

inline constexpr uint64_t kBlockBytes = 1024, kStripeBytes = 64;
inline constexpr int kLanes = 32;           ///< a lane sums 16 bytes of two stripes of each block
inline constexpr int kColumns = 8;          ///< accumulators
inline constexpr uint64_t kMinBytes = 241;  ///< shorter inputs are hashed in another way

/// 64 bits of the secret of the specification, at byte `at` ≤ 184.
FIRSTLIGHT_HD inline uint64_t secret_at(int at) {
  constexpr uint64_t kSecret[25] = {
      0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb,
      0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088,
      0x4ef90da297486471, 0xd8acdea946ef1938, 0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a,
      0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
      0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af, 0};
  const int word = at / 8, shift = at % 8 * 8;
  return shift == 0 ? kSecret[word] : kSecret[word] >> shift | kSecret[word + 1] << (64 - shift);
}

/// Accumulator `column` before the first block.
FIRSTLIGHT_HD inline uint64_t initial(int column) {
  constexpr uint64_t kInitial[kColumns] = {0xc2b2ae3d,         0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f,
                                           0x165667b19e3779f9, 0x85ebca77c2b2ae63, 0x85ebca77,
                                           0x27d4eb2f165667c5, 0x9e3779b1};
  return kInitial[column];
}

/// What a lane adds to accumulators 2c and 2c + 1, c = lane % 4.
struct Pair {
  uint64_t even = 0, odd = 0;
};

FIRSTLIGHT_HD inline void add_words(Pair& sum, uint64_t v0, uint64_t v1, uint64_t s0, uint64_t s1) {
  const uint64_t k0 = v0 ^ s0, k1 = v1 ^ s1;
  sum.even += v1 + (k0 & 0xffffffff) * (k0 >> 32);
  sum.odd += v0 + (k1 & 0xffffffff) * (k1 >> 32);
}

/// Two words from an address that is a multiple of 16.
FIRSTLIGHT_HD inline Pair load_pair(const std::byte* at) {
  Pair words;
#if defined(__CUDA_ARCH__)
  const ulonglong2 both = *reinterpret_cast<const ulonglong2*>(at);
  words.even = both.x;
  words.odd = both.y;
#else
  std::memcpy(&words, at, sizeof words);
#endif
  return words;
}

/// One lane's part of every block: column pair lane % 4 of stripes lane / 4 and lane / 4 + 8.
class Lane {
 public:
  FIRSTLIGHT_HD explicit Lane(int lane) : pair_(lane % 4), stripe_(lane / 4) {
    for (int half = 0; half < 2; ++half) {
      const int at = 8 * (stripe_ + 8 * half) + 16 * pair_;
      secret_[half] = {secret_at(at), secret_at(at + 8)};
    }
  }
  /// Where the lane's first 16 bytes lie in a block; the second lie 512 behind.
  FIRSTLIGHT_HD uint64_t offset() const { return kStripeBytes * static_cast<uint64_t>(stripe_) + 16u * pair_; }
  FIRSTLIGHT_HD Pair sum(Pair first, Pair second) const {
    Pair sum;
    add_words(sum, first.even, first.odd, secret_[0].even, secret_[0].odd);
    add_words(sum, second.even, second.odd, secret_[1].even, secret_[1].odd);
    return sum;
  }
  /// The lane's part of what follows the last whole block: whole stripes, then the last 64 bytes of all.
  FIRSTLIGHT_HD Pair sum_of_end(const std::byte* data, uint64_t size) const {
    const uint64_t begin = (size - 1) / kBlockBytes * kBlockBytes;
    const uint64_t n_stripes = (size - 1 - begin) / kStripeBytes;
    Pair sum;
    for (int half = 0; half < 2; ++half) {
      if (static_cast<uint64_t>(stripe_ + 8 * half) >= n_stripes) continue;
      const Pair words = load_pair(data + begin + offset() + kBlockBytes / 2 * static_cast<uint64_t>(half));
      add_words(sum, words.even, words.odd, secret_[half].even, secret_[half].odd);
    }
    if (stripe_ == 0) {
      const std::byte* last = data + size - kStripeBytes + 16 * pair_;
      add_words(sum, load_bytes(last), load_bytes(last + 8), secret_at(121 + 16 * pair_), secret_at(129 + 16 * pair_));
    }
    return sum;
  }

 private:
  /// A word from any address.
  FIRSTLIGHT_HD static uint64_t load_bytes(const std::byte* at) {
    uint64_t word = 0;
    for (int i = 7; i >= 0; --i) word = word << 8 | static_cast<uint64_t>(at[i]);
    return word;
  }

  int pair_, stripe_;
  Pair secret_[2];
};

FIRSTLIGHT_HD inline uint64_t scramble_key(int column) { return secret_at(128 + 8 * column); }

/// An accumulator after a block.
FIRSTLIGHT_HD inline uint64_t scramble(uint64_t accumulator, uint64_t key) {
  return (accumulator ^ accumulator >> 47 ^ key) * 0x9e3779b1;
}

/// The low and the high half of a * b, exclusive-ored.
FIRSTLIGHT_HD inline uint64_t fold(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return a * b ^ __umul64hi(a, b);
#else
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

/// The hash from the accumulators after the end was added.
FIRSTLIGHT_HD inline uint64_t finish(const uint64_t* accumulators, uint64_t size) {
  uint64_t hash = size * 0x9e3779b185ebca87;
  for (int i = 0; i < kColumns; i += 2) {
    hash += fold(accumulators[i] ^ secret_at(11 + 8 * i), accumulators[i + 1] ^ secret_at(19 + 8 * i));
  }
  hash = (hash ^ hash >> 37) * 0x165667919e3779f9;
  return hash ^ hash >> 32;
}

}  // namespace firstlight::xxh3
