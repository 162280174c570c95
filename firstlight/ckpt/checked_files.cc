// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/checked_files.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/shard_digest.h"
#include "firstlight/ckpt/slice_map.h"

namespace firstlight {

namespace {

[[noreturn]] void damaged(const std::string& path, uint64_t end, const std::string& found, const std::string& want) {
  throw Error(ErrorKind::damaged, str(range_text(path, 0, end), ": XXH3-128 is ", found, ", the manifest says ", want));
}

}  // namespace

std::string range_text(const std::string& path, uint64_t begin, uint64_t end) {
  return str("'", path, "' bytes [", begin, ", ", end, ")");
}

const ManifestTp& stored_tp(const Manifest& manifest, const ModelConfig& config, const fs::path& out, int tp) {
  require_tp(config, tp);
  const ManifestTp* found = manifest.find_tp(tp);
  if (found != nullptr) return *found;
  std::string stored;
  for (const ManifestTp& one : manifest.tps) stored += str(stored.empty() ? "" : ", ", one.tp);
  throw Error(ErrorKind::not_found, str("'", out.string(), "' has no tp ", tp, "; stored: ", stored,
                                        " (firstlight shard adds another to it)"));
}

SafetensorsHeader parse_part_header(std::string_view bytes, const ManifestPart& part, const std::string& path) {
  const std::string found = xxh3_128_hex(std::as_bytes(std::span(bytes)));
  if (found != part.header_xxh3) damaged(path, bytes.size(), found, part.header_xxh3);
  uint64_t length = 0;
  if (bytes.size() > sizeof length) std::memcpy(&length, bytes.data(), sizeof length);
  if (length != kDataBegin - sizeof length) {
    throw Error(ErrorKind::bad_input, str("'", part.file, "': the header's length is ", length, ", expected ",
                                          kDataBegin - sizeof length, " (data at 2 MiB)"));
  }
  return parse_safetensors_header(bytes.substr(sizeof length), part.data_bytes, part.file);
}

CheckedPart open_part(const fs::path& out, const Manifest& manifest, const ManifestPart& part) {
  CheckedPart opened;
  opened.file = open_listed(out, manifest, part.file);
  std::string head(part.header_bytes, '\0');
  opened.file->read(0, std::as_writable_bytes(std::span(head)));
  opened.header = parse_part_header(head, part, opened.file->path());
  opened.header.data_begin = kDataBegin;
  return opened;
}

void check_files(const fs::path& out, const Manifest& manifest, const std::function<bool(const std::string&)>& wanted,
                 int n_threads, const std::stop_token& stop) {
  std::vector<std::string> names;
  for (const auto& [name, file] : manifest.files) {
    if (wanted(name)) names.push_back(name);
  }
  // Large files first: the last thread must not begin one when the others are done.
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return manifest.files.at(a).size > manifest.files.at(b).size;
  });
  std::atomic<uint64_t> bytes{0};
  for_each_file(
      names.size(), n_threads,
      [&](size_t i, std::span<std::byte> buffer) {
        const auto file = open_listed(out, manifest, names[i]);
        const std::string found = digest_file(*file, buffer, stop, bytes).xxh3_128;
        const std::string& want = manifest.files.at(names[i]).xxh3_128;
        if (found != want) damaged(file->path(), file->size(), found, want);
      },
      [] {});
}

bool is_small_file_of(const Manifest& manifest, int tp, const std::string& name) {
  if (name.find('/') == std::string::npos) return true;
  const ManifestTp* stored = manifest.find_tp(tp);
  if (stored == nullptr || name.ends_with(".safetensors") || name.ends_with("/leaves.xxh3")) return false;
  return std::any_of(stored->ranks.begin(), stored->ranks.end(),
                     [&](const ManifestRank& rank) { return name.starts_with(rank.directory + "/"); });
}

}  // namespace firstlight
