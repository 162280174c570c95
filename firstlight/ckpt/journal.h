// SPDX-License-Identifier: Apache-2.0
// OUT/journal.jsonl: what a conversion that is not finished has made so far. Its first line says of what; a line
// follows for each part that stands, durably, under its name.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "firstlight/ckpt/shard_pipeline.h"
#include "firstlight/io/output_file.h"

namespace firstlight {

struct JournalHead {
  std::string fingerprint, kind, dtype;
  uint64_t part_bytes = 0;
  friend bool operator==(const JournalHead&, const JournalHead&) = default;
};

struct JournalPart {
  uint64_t size = 0;
  std::string xxh3_128, leaves;  ///< leaves: XXH3-128 of the part's leaf hashes, as they stand in leaves.xxh3
};

struct JournalContent {
  JournalHead head;
  std::map<std::string, JournalPart> parts;
};

/// Nothing if there is no journal. Reading ends at the first line that is not whole: a crash cut it. A first line that
/// is not a journal's throws Error{bad_input}.
std::optional<JournalContent> read_journal(const fs::path& out);

/// The journal of a running conversion.
class Journal {
 public:
  /// Replaces the file by one with these lines.
  Journal(const fs::path& out, const JournalContent& content, const StepHook& hook);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  /// Durable when it returns.
  void add(const std::string& name, const PartDigest& digest);

 private:
  std::string path_;
  const StepHook& hook_;
  int fd_ = -1;
};

/// The bytes that leaves.xxh3 has for these leaves.
std::string leaf_bytes(const std::vector<uint64_t>& leaves);

}  // namespace firstlight
