// SPDX-License-Identifier: Apache-2.0
// The head of a prefix file: refused with an Error, or understood, and then written again to the same bytes. Inputs are
// padded to whole alignments and get the hash and the file's size that they ask for, or nothing would come past them.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/kv/prefix_head.h"

using namespace firstlight;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> head(std::max<size_t>(1, (size + kPrefixAlignment - 1) / kPrefixAlignment) * kPrefixAlignment);
  if (size > 0) std::memcpy(head.data(), data, size);
  uint64_t file_bytes = 0;
  std::memcpy(&file_bytes, head.data() + 24, sizeof file_bytes);
  try {
    const uint64_t hash = prefix_head_hash(head);
    std::memcpy(head.data() + kPrefixHashAt, &hash, sizeof hash);
    if (prefix_head_bytes(head, file_bytes, "fuzz") != head.size())
      return 0;  // the reader would have read another size
    const PrefixHead parsed = parse_prefix_head(head, file_bytes, "fuzz");
    if (to_bytes(parsed) != head) std::abort();
    const PrefixInfo& info = parsed.info;
    uint64_t at = parsed.head_bytes();
    for (int rank = 0; rank < info.tp; ++rank) {  // sections follow one another and end with the file
      if (parsed.page_at(rank, 0) < at || parsed.exact_at(rank, 0) < parsed.page_at(rank, info.n_pages())) std::abort();
      at = parsed.exact_at(rank, info.n_exact());
    }
    if (at > parsed.file_bytes() || parsed.file_bytes() != file_bytes || parsed.file_bytes() > INT64_MAX) std::abort();
    parsed.page_hash(info.tp - 1, info.n_pages() - 1);
    if (info.n_exact() > 0) parsed.exact_hash(info.tp - 1, info.n_exact() - 1);
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::bug) std::abort();
  }
  return 0;
}
