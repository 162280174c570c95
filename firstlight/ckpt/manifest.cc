// SPDX-License-Identifier: Apache-2.0
// Writing manifest.json, and reading a checkpoint's files only as the manifest lists them. The parser is in
// manifest_parse.cc.
#include "firstlight/ckpt/manifest.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

constexpr const char* kCheckpointFiles[] = {"READY", "manifest.json", "journal.jsonl"};

/// The hash that READY holds.
std::string read_ready(const fs::path& path) {
  std::string text = read_text(path, 4096, FileRole::checkpoint);
  constexpr size_t kHexDigits = 32;
  if (text.size() != kHexDigits + 1 || text.find_first_not_of("0123456789abcdef") != kHexDigits || text.back() != '\n')
    throw Error(ErrorKind::damaged, str("'", path.string(), "' is damaged: it has ", text.size(),
                                        " bytes, expected 32 hex digits and a newline"));
  text.pop_back();
  return text;
}

std::string json_string(std::string_view text) { return nlohmann::json(text).dump(); }

/// Joins lines with ",\n  ".
class Lines {
 public:
  void add(const std::string& line) { text_ += (text_.empty() ? "\n  " : ",\n  ") + line; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

std::string tensor_line(const ManifestTensor& tensor) {
  std::string shape;
  for (const int64_t n : tensor.shape) shape += str(shape.empty() ? "" : ", ", n);
  return str("{\"name\": ", json_string(tensor.name), ", \"shape\": [", shape, "], \"dtype\": \"",
             safetensors_name(tensor.dtype), "\", \"slice\": \"", to_string(tensor.slice), "\"}");
}

std::string tp_line(const ManifestTp& tp) {
  std::string ranks;
  for (const ManifestRank& rank : tp.ranks) {
    std::string parts;
    for (const ManifestPart& part : rank.parts) {
      parts +=
          str(parts.empty() ? "" : ", ", "{\"file\": ", json_string(part.file), ", \"data_bytes\": ", part.data_bytes,
              ", \"tail_begin\": ", part.tail_begin, ", \"first_leaf\": ", part.first_leaf,
              ", \"header_bytes\": ", part.header_bytes, ", \"header_xxh3\": ", json_string(part.header_xxh3), "}");
    }
    ranks += str(ranks.empty() ? "\n   " : ",\n   ", "{\"directory\": ", json_string(rank.directory), ", \"parts\": [",
                 parts, "]}");
  }
  return str("{\"tp\": ", tp.tp, ", \"ranks\": [", ranks, "]}");
}

/// Throws unless every step from `out` to the file is a directory of its own and the last a regular file: nothing in a
/// checkpoint may lead out of it.
void require_plain(const fs::path& out, const std::string& name) {
  fs::path path = out;
  const fs::path relative(name);
  for (auto step = relative.begin(); step != relative.end(); ++step) {
    path /= *step;
    struct stat info {};
    if (lstat(path.c_str(), &info) != 0) {
      if (errno == ENOENT)
        throw Error(ErrorKind::not_found, str("'", path.string(), "' is missing: the manifest lists it"));
      throw_errno(errno, "look at", path.string());
    }
    const bool last = std::next(step) == relative.end();
    if (last ? !S_ISREG(info.st_mode) : !S_ISDIR(info.st_mode)) {
      throw Error(ErrorKind::damaged, str("'", path.string(), "' is not a plain ", last ? "file" : "directory",
                                          ": a checkpoint holds no links"));
    }
  }
}

}  // namespace

uint64_t ManifestRank::total_bytes() const {
  uint64_t total = 0;
  for (const ManifestPart& part : parts) total += part.data_bytes;
  return total;
}

std::string_view to_string(SliceKind kind) noexcept {
  switch (kind) {
    case SliceKind::replicated:
      return "replicated";
    case SliceKind::q_rows:
      return "q_rows";
    case SliceKind::kv_rows:
      return "kv_rows";
    case SliceKind::rows:
      return "rows";
    case SliceKind::columns:
      return "columns";
    case SliceKind::vocab_rows:
      return "vocab_rows";
  }
  return "?";
}

const ManifestTp* Manifest::find_tp(int tp) const {
  for (const ManifestTp& one : tps) {
    if (one.tp == tp) return &one;
  }
  return nullptr;
}

std::string to_json(const Manifest& manifest) {
  Lines tensors, tps, files;
  for (const ManifestTensor& tensor : manifest.tensors) tensors.add(tensor_line(tensor));
  for (const ManifestTp& tp : manifest.tps) tps.add(tp_line(tp));
  for (const auto& [name, file] : manifest.files) {
    files.add(str(json_string(name), ": {\"size\": ", file.size, ", \"xxh3_128\": \"", file.xxh3_128, "\"}"));
  }
  return str("{\"firstlight_rank_checkpoint\": ", manifest.version,
             ",\n \"architecture\": ", json_string(manifest.architecture),
             ",\n \"dtype\": ", json_string(manifest.recipe_dtype),
             ",\n \"source\": {\"kind\": ", json_string(manifest.source_kind),
             ", \"fingerprint\": ", json_string(manifest.source_fingerprint), "},\n \"tensors\": [", tensors.text(),
             "],\n \"tps\": [", tps.text(), "],\n \"files\": {", files.text(), "}}\n");
}

bool holds_checkpoint(const fs::path& out) {
  std::error_code ignored;
  return std::any_of(std::begin(kCheckpointFiles), std::end(kCheckpointFiles),
                     [&](const char* name) { return fs::exists(fs::symlink_status(out / name, ignored)); });
}

Manifest read_manifest(const fs::path& out) {
  const fs::path ready = out / "READY";
  std::error_code ignored, failure;
  const fs::file_status status = fs::status(out, ignored);
  if (!fs::exists(status)) throw_errno(ENOENT, "open", out.string());
  if (!fs::is_directory(status)) {
    throw Error(ErrorKind::bad_input,
                str("'", out.string(),
                    "' is a file, not a rank checkpoint; make one with: firstlight shard MODEL -o OUT --tp 1"));
  }
  const bool has_ready = fs::exists(fs::symlink_status(ready, failure));
  if (failure && failure != std::errc::no_such_file_or_directory) throw_errno(failure.value(), "open", ready.string());
  if (!has_ready) {
    if (holds_checkpoint(out))
      throw Error(ErrorKind::not_found,
                  str("'", ready.string(), "' is missing: the conversion was not finished; run shard again"));
    throw Error(ErrorKind::bad_input,
                str("'", out.string(),
                    "' is no rank checkpoint (it has no READY); make one with: firstlight shard MODEL -o OUT --tp 1"));
  }
  const std::string want = read_ready(ready);
  const fs::path path = out / "manifest.json";
  const std::string json = read_text(path, kMostTextBytes, FileRole::checkpoint);
  const std::string found = xxh3_128_hex(std::as_bytes(std::span(json)));
  if (want != found) {
    throw Error(ErrorKind::damaged, str("'", path.string(), "' bytes [0, ", json.size(), ") have XXH3-128 ", found,
                                        ", '", ready.string(), "' says ", want, ": one of the two is damaged"));
  }
  return parse_manifest(json, path.string());
}

std::shared_ptr<const File> open_listed(const fs::path& out, const Manifest& manifest, const std::string& name) {
  const auto listed = manifest.files.find(name);
  if (listed == manifest.files.end()) {
    throw Error(ErrorKind::not_found, str("'", name, "' is not in the manifest of '", out.string(), "'"));
  }
  require_plain(out, name);
  auto file = File::open(out / name, FileRole::checkpoint);
  if (file->size() != listed->second.size) {
    throw Error(ErrorKind::damaged,
                str("'", file->path(), "' has ", file->size(), " bytes, the manifest says ", listed->second.size));
  }
  return file;
}

std::string read_listed(const fs::path& out, const Manifest& manifest, const std::string& name) {
  const auto file = open_listed(out, manifest, name);
  if (file->size() > kMostTextBytes) {
    throw Error(ErrorKind::bad_input,
                str("'", file->path(), "' has ", file->size(), " bytes: too long to be read whole"));
  }
  std::string text(file->size(), '\0');
  file->read(0, std::as_writable_bytes(std::span(text)));
  const std::string& want = manifest.files.at(name).xxh3_128;
  const std::string found = xxh3_128_hex(std::as_bytes(std::span(text)));
  if (found != want) {
    throw Error(ErrorKind::damaged, str("'", file->path(), "' bytes [0, ", text.size(), "): XXH3-128 is ", found,
                                        ", the manifest says ", want));
  }
  return text;
}

}  // namespace firstlight
