// SPDX-License-Identifier: Apache-2.0
// XXH3 (accidents) by libxxhash and SHA-256 (identity) by libcrypto.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace firstlight {

using Bytes = std::span<const std::byte>;

uint64_t xxh3_64(Bytes data) noexcept;

/// XXH3-128 of a stream of pieces.
class Xxh3_128 {
 public:
  Xxh3_128();
  ~Xxh3_128();
  Xxh3_128(const Xxh3_128&) = delete;
  Xxh3_128& operator=(const Xxh3_128&) = delete;
  void update(Bytes data) noexcept;
  /// 32 lower-case hexadecimal digits, most significant first (as `xxhsum -H2` prints them).
  std::string hex() const;

 private:
  void* state_;
};
std::string xxh3_128_hex(Bytes data);

/// SHA-256 of a stream of pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(Bytes data);
  /// 64 lower-case hexadecimal digits; the object is spent afterwards.
  std::string hex();

 private:
  void* state_;
};

}  // namespace firstlight
