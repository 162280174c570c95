// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string head_line(const JournalHead& head) {
  return ordered_json{{"firstlight_journal", 1},
                      {"kind", head.kind},
                      {"fingerprint", head.fingerprint},
                      {"dtype", head.dtype},
                      {"part_bytes", head.part_bytes}}
             .dump() +
         "\n";
}

std::string part_line(const std::string& name, const JournalPart& part) {
  return ordered_json{{"part", name}, {"size", part.size}, {"xxh3_128", part.xxh3_128}, {"leaves", part.leaves}}
             .dump() +
         "\n";
}

}  // namespace

std::string leaf_bytes(const std::vector<uint64_t>& leaves) {
  static_assert(std::endian::native == std::endian::little, "leaves.xxh3 is little-endian");
  std::string bytes(leaves.size() * sizeof(uint64_t), '\0');
  std::memcpy(bytes.data(), leaves.data(), bytes.size());
  return bytes;
}

std::optional<JournalContent> read_journal(const fs::path& out) {
  const fs::path path = out / "journal.jsonl";
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(path, ignored))) return std::nullopt;
  const std::string text = read_text(path, kMostTextBytes, FileRole::checkpoint);
  JournalContent content;
  bool first = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const json line = json::parse(text.substr(begin, end - begin), nullptr, false);
    begin = end + 1;
    try {
      if (first) {
        if (line.at("firstlight_journal").get<int>() != 1) break;
        content.head = {line.at("fingerprint"), line.at("kind"), line.at("dtype"), line.at("part_bytes")};
        first = false;
      } else {
        content.parts[line.at("part")] = {line.at("size"), line.at("xxh3_128"), line.at("leaves")};
      }
    } catch (const json::exception&) {
      break;
    }
  }
  if (first) throw Error(ErrorKind::bad_input, str("'", path.string(), "' is not a conversion's journal"));
  return content;
}

Journal::Journal(const fs::path& out, const JournalContent& content, const StepHook& hook)
    : path_((out / "journal.jsonl").native()), hook_(hook) {
  std::string text = head_line(content.head);
  for (const auto& [name, part] : content.parts) text += part_line(name, part);
  if (hook_) hook_("journal", path_);
  write_durably(path_, std::string_view(text));
  fd_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd_ < 0) throw_errno(errno, "open", path_);
}

Journal::~Journal() {
  if (fd_ >= 0) ::close(fd_);
}

void Journal::add(const std::string& name, const PartDigest& digest) {
  const std::string leaves = leaf_bytes(digest.leaves);
  const std::string line =
      part_line(name, {digest.size, digest.xxh3_128, xxh3_128_hex(std::as_bytes(std::span(leaves)))});
  if (hook_) hook_("journal", path_);
  std::string_view left = line;
  while (!left.empty()) {
    const ssize_t n = ::write(fd_, left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw_errno(n == 0 ? EIO : errno, "append to", path_);
    left.remove_prefix(static_cast<size_t>(n));
  }
  while (::fdatasync(fd_) != 0) {
    if (errno != EINTR) throw_errno(errno, "fsync", path_);
  }
}

}  // namespace firstlight
