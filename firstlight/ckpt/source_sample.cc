// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/source_sample.h"

#include <algorithm>
#include <array>

namespace firstlight {

void hash_sample(Xxh3_128& hash, const File& file, uint64_t offset, uint64_t size_bytes) {
  std::array<std::byte, 4096> piece;
  const uint64_t n = std::min<uint64_t>(piece.size(), size_bytes);
  for (const uint64_t at : {uint64_t{0}, (size_bytes - n) / 2, size_bytes - n}) {
    const auto bytes = std::span(piece).first(n);
    file.read(offset + at, bytes);
    hash.update(bytes);
  }
}

}  // namespace firstlight
