// SPDX-License-Identifier: Apache-2.0
// Every byte under OUT against the manifest. Nothing ends it early but an interrupt: a report of one damaged file out
// of three would be a lie.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/checked_files.h"
#include "firstlight/ckpt/journal.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/shard_digest.h"
#include "firstlight/ckpt/shard_state.h"

namespace firstlight {

namespace {

class Verifier {
 public:
  Verifier(const fs::path& out, std::stop_token stop) : out_(out), stop_(std::move(stop)) {}

  VerifyReport run(int n_threads, const std::function<void(const Progress&)>& progress) {
    const auto begin = std::chrono::steady_clock::now();
    if (read_manifest_anyhow()) {
      read_config();
      std::vector<std::string> names;
      uint64_t total = 0;
      for (const auto& [name, file] : manifest_.files) {
        names.push_back(name);
        total += file.size;
      }
      list_parts();
      // Large files first: the last thread must not begin a part when the others are done.
      std::stable_sort(names.begin(), names.end(), [this](const std::string& a, const std::string& b) {
        return manifest_.files.at(a).size > manifest_.files.at(b).size;
      });
      for_each_file(
          names.size(), n_threads, [&](size_t i, std::span<std::byte> buffer) { check_file(names[i], buffer); },
          [&] {
            if (progress) progress({"verifying", bytes_.load(), total});
          });
      if (progress) progress({"verifying", bytes_.load(), total});  // the last word, however quick it was
      for (const ManifestTp& tp : manifest_.tps) {
        for (const ManifestRank& rank : tp.ranks) check_leaves(rank);
      }
      check_headers();
      find_extra();
      report_.files += names.size();
    }
    report_.bytes = bytes_.load();
    std::sort(report_.problems.begin(), report_.problems.end());
    report_.problems.erase(std::unique(report_.problems.begin(), report_.problems.end()), report_.problems.end());
    report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return std::move(report_);
  }

 private:
  void problem(const Error& error) {
    problem(error.what());
    const std::lock_guard lock(mutex_);
    report_.unreadable = report_.unreadable || error.kind() == ErrorKind::io;
  }
  void problem(const std::string& what) {
    const std::lock_guard lock(mutex_);
    report_.damaged = true;
    report_.problems.push_back(what);
  }

  /// False if there is nothing to compare with. A manifest that READY does not vouch for, but that can be read, is
  /// still the best account of what should be here.
  bool read_manifest_anyhow() {
    try {
      manifest_ = read_manifest(out_);
      report_.files = 2;
      return true;
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::io || !holds_checkpoint(out_)) throw;
      report_.being_written = is_being_written(out_);
      report_.unfinished = fs::exists(fs::symlink_status(out_ / "journal.jsonl"));
      not_vouched_for(e);
    }
    try {
      const std::string path = (out_ / "manifest.json").string();
      manifest_ = parse_manifest(read_text(path, kMostTextBytes, FileRole::checkpoint), path);
      return true;
    } catch (const Error& e) {
      not_vouched_for(e);
      return false;
    }
  }

  /// READY and manifest.json are missing until a conversion ends: nothing is to be mended then.
  void not_vouched_for(const Error& error) {
    if (!report_.unfinished || error.kind() != ErrorKind::not_found) return problem(error.what());
    report_.problems.push_back(error.what());
  }

  void read_config() {
    try {
      config_ = parse_hf_config(read_text(out_ / "config.json", kMostTextBytes, FileRole::checkpoint));
      check_architecture(*config_, manifest_, out_);
      check_tensor_list(*config_, manifest_);
    } catch (const Error& e) {
      problem(e.what());
      config_.reset();
    }
  }

  void list_parts() {
    for (const ManifestTp& tp : manifest_.tps) {
      for (const ManifestRank& rank : tp.ranks) {
        for (const ManifestPart& part : rank.parts) parts_.insert(part.file);
      }
    }
  }

  void check_file(const std::string& name, std::span<std::byte> buffer) {
    try {
      const auto file = open_listed(out_, manifest_, name);
      PartDigest digest = digest_file(*file, buffer, stop_, bytes_);
      const std::string& want = manifest_.files.at(name).xxh3_128;
      const bool is_part = parts_.contains(name);
      if (digest.xxh3_128 != want) {
        const std::string what = str(range_text(file->path(), 0, file->size()), ": XXH3-128 is ", digest.xxh3_128,
                                     ", the manifest says ", want);
        const std::lock_guard lock(mutex_);
        wrong_[name] = what;
        report_.damaged = true;
        if (!is_part) report_.problems.push_back(what);
      }
      const std::lock_guard lock(mutex_);
      if (is_part) digests_[name] = std::move(digest);
    } catch (const Error& e) {
      problem(e);
    }
  }

  /// The leaves of a rank as stored, against those of the bytes.
  void check_leaves(const ManifestRank& rank) {
    const std::string name = rank.directory + "/leaves.xxh3";
    std::vector<uint64_t> stored;
    try {
      const auto file = open_listed(out_, manifest_, name);
      stored.resize(file->size() / sizeof(uint64_t));
      file->read(0, std::as_writable_bytes(std::span(stored)));
    } catch (const Error&) {
      stored.clear();  // named already
    }
    const bool leaves_right = !stored.empty() && !wrong_.contains(name);
    for (const ManifestPart& part : rank.parts) {
      const auto digest = digests_.find(part.file);
      if (digest == digests_.end()) continue;
      report_.leaves += digest->second.leaves.size();
      bool named = false;
      for (uint64_t i = 0; leaves_right && i < digest->second.leaves.size(); ++i) {
        if (digest->second.leaves[i] == stored.at(part.first_leaf + i)) continue;
        named = true;
        name_leaf(part, i);
      }
      const auto wrong = wrong_.find(part.file);
      if (wrong == wrong_.end() || named) continue;
      problem(leaves_right
                  ? str(wrong->second, "; every leaf is right: bytes [0, ", kDataBegin, "), the header, are wrong")
                  : wrong->second);
    }
  }

  void name_leaf(const ManifestPart& part, uint64_t leaf) {
    const uint64_t begin = leaf * kLeafBytes, end = std::min(begin + kLeafBytes, part.data_bytes);
    std::string tensors;
    try {
      for (const SafetensorsTensor& tensor :
           read_safetensors_header(*File::open(out_ / part.file, FileRole::checkpoint)).tensors) {
        if (tensor.begin < end && begin < tensor.end) tensors += str(tensors.empty() ? "" : ", ", tensor.name);
      }
    } catch (const Error&) {
      tensors = "unknown: the header is damaged";
    }
    problem(str("'", (out_ / part.file).string(), "' bytes [", kDataBegin + begin, ", ", kDataBegin + end, "): leaf ",
                leaf, " is not what leaves.xxh3 says; tensors: ", tensors));
  }

  /// Headers of parts that are whole, against the manifest's tensors and the config.
  void check_headers() {
    if (!config_) return;
    for (const ManifestTp& tp : manifest_.tps) {
      int index = 0;
      for (const ManifestRank& rank : tp.ranks) check_rank_headers(tp.tp, index++, rank);
    }
  }

  void check_rank_headers(int tp, int index, const ManifestRank& rank) {
    try {
      require_tp(*config_, tp);
      std::vector<SafetensorsHeader> headers;
      for (const ManifestPart& part : rank.parts) {
        if (wrong_.contains(part.file) || !digests_.contains(part.file)) return;  // named already
        const auto file = open_listed(out_, manifest_, part.file);
        std::string head(part.header_bytes, '\0');
        file->read(0, std::as_writable_bytes(std::span(head)));
        if (xxh3_128_hex(std::as_bytes(std::span(head))) != part.header_xxh3) {
          problem(str("'", file->path(), "' bytes [0, ", part.header_bytes, "): not the manifest's header_xxh3"));
        }
        headers.push_back(read_safetensors_header(*file));
      }
      lay_out_arena(*config_, manifest_, rank, tp, index, headers);
    } catch (const Error& e) {
      problem(e.what());
    }
  }

  void name_extra(const std::string& name) {
    const std::string what = str("'", (out_ / name).string(), "' is not in the manifest");
    if (is_rest_of_conversion(name)) {
      if (!report_.unfinished) report_.being_written = report_.being_written || is_being_written(out_);
      report_.unfinished = true;
      report_.problems.push_back(str(what, report_.being_written ? ": a conversion that runs now writes it"
                                                                 : ": a conversion that did not end left it"));
    } else if (may_be_ours(name)) {
      problem(what);
    } else {
      report_.foreign = true;
      report_.problems.push_back(str(what, ": shard did not write it"));
    }
  }

  void find_extra() {
    std::error_code error;
    for (auto entry = fs::recursive_directory_iterator(out_, error); entry != fs::recursive_directory_iterator();
         entry.increment(error)) {
      const std::string name = entry->path().lexically_relative(out_).generic_string();
      if (entry->is_directory() && !entry->is_symlink()) continue;
      if (manifest_.files.contains(name) || name == "manifest.json" || name == "READY") continue;
      name_extra(name);
    }
    if (error) problem(str("'", out_.string(), "': ", error.message()));
  }

  const fs::path& out_;
  std::stop_token stop_;
  Manifest manifest_;
  std::optional<ModelConfig> config_;
  std::set<std::string> parts_;
  std::atomic<uint64_t> bytes_{0};
  std::mutex mutex_;
  std::map<std::string, PartDigest> digests_;  // of parts that could be read
  std::map<std::string, std::string> wrong_;   // files with another hash, and what to say of them
  VerifyReport report_;
};

}  // namespace

VerifyReport verify(const fs::path& out, int n_threads, std::stop_token stop,
                    const std::function<void(const Progress&)>& progress) {
  return Verifier(out, std::move(stop)).run(n_threads, progress);
}

}  // namespace firstlight
