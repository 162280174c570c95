// SPDX-License-Identifier: Apache-2.0
// A conversion from end to end (docs/rank-checkpoint.md §7): what is there, what is missing, the bytes, the small
// files, READY.
#include "firstlight/ckpt/shard.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/shard_digest.h"
#include "firstlight/ckpt/shard_files.h"
#include "firstlight/ckpt/shard_job.h"
#include "firstlight/ckpt/shard_state.h"
#include "firstlight/io/mount.h"

namespace firstlight {

namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kMinPartBytes = 64u << 10;      // a part is at least 2 MiB of header: less is a mistake
using Files = std::map<std::string, std::string>;  // name relative to OUT → content

class Conversion {
 public:
  Conversion(const Source& source, const fs::path& out, const ShardOptions& options, const StepHook& hook)
      : source_(source), out_(out), options_(options), hook_(hook) {}

  ShardReport run() {
    const auto begin = Clock::now();
    prepare();
    std::error_code ignored;
    std::optional<OutLock> lock;
    if (fs::is_directory(out_, ignored)) lock.emplace(out_);
    found_ = survey(out_, head_, options_.force, options_.note);
    choose_tps();
    if (!nothing_to_do()) {
      keep_whole_parts();
      plan_memory();
      check_space();
      if (found_.manifest)
        note(str(
            "'", source_.path(), "' is taken for the model that '", out_.string(),
            "' was made of by samples of 12 KiB a tensor: a change elsewhere is not noticed (--force starts anew)"));
      note_changes(tensors_, options_.note);
      if (!lock) {
        fs::create_directories(out_);
        lock.emplace(out_);
      }
      write_parts();
      finish();
    }
    report_.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return report_;
  }

 private:
  void note(const std::string& line) const {
    if (options_.note) options_.note(line);
  }
  void put(const std::string& name, const std::string& content) const {
    const fs::path path = out_ / name;
    if (hook_) hook_("put", path.native());
    write_durably(path, std::string_view(content));
  }
  static ManifestFile listing(const std::string& content) {
    return {content.size(), xxh3_128_hex(std::as_bytes(std::span(content)))};
  }

  void prepare() {
    if (options_.tps.empty()) throw Error(ErrorKind::bad_input, "no tp was given");
    if (options_.part_bytes < kMinPartBytes)
      throw Error(ErrorKind::bad_input, str("part size ", options_.part_bytes, " is below 64 KiB"));
    for (const int tp : options_.tps) require_tp(source_.config(), tp);
    std::error_code error;
    if (fs::equivalent(out_, source_.path(), error)) {
      throw Error(ErrorKind::bad_input, str("'", out_.string(), "' is the source: choose another directory"));
    }
    const DTypeChoice choice = options_.dtype.value_or(default_dtype(source_));
    tensors_ = stored_tensors(source_, choice);
    top_ = top_files(source_, main_dtype(tensors_));
    if (const auto generation = top_.find("generation_config.json"); generation != top_.end())
      stop_token_ids(source_.config(), generation->second);  // what run would refuse is refused here
    for (const auto& [name, content] : options_.derived) top_[name] = content;
    head_ = {source_.fingerprint(), std::string(source_.kind()), std::string(to_string(choice)), options_.part_bytes};
    report_.dtype = head_.dtype;
  }

  /// Wanted tps and those that OUT has; `kept_tps_` are taken over from a trusted manifest without a look.
  void choose_tps() {
    std::set<int> tps(options_.tps.begin(), options_.tps.end());
    if (found_.manifest) {
      for (const ManifestTp& tp : found_.manifest->tps) {
        tps.insert(tp.tp);
        if (found_.trusted) kept_tps_.insert(tp.tp);
      }
    }
    report_.tps.assign(tps.begin(), tps.end());
    for (const int tp : tps) {
      if (kept_tps_.contains(tp)) {
        for (const ManifestRank& rank : found_.manifest->find_tp(tp)->ranks) report_.bytes_kept += rank.total_bytes();
        continue;
      }
      CutTp cut{lay_out(source_.config(), tensors_, tp, options_.part_bytes), {}};
      cut.live.assign(cut.layout.parts.size(), std::vector<char>(static_cast<size_t>(tp), 1));
      cuts_.push_back(std::move(cut));
    }
  }

  bool nothing_to_do() const {
    if (!found_.trusted || !cuts_.empty()) return false;
    for (const auto& [name, content] : top_) {
      const auto listed = found_.manifest->files.find(name);
      if (listed == found_.manifest->files.end() || listed->second.xxh3_128 != listing(content).xxh3_128) return false;
    }
    std::string tps;
    for (const int tp : report_.tps) tps += str(tps.empty() ? "" : ", ", tp);
    note(str("nothing to write: tp ", tps, " are stored"));
    remove_file(out_ / "journal.jsonl", hook_);
    remove_stale(out_, stale_files(out_, kept_names(), found_.trusted), hook_);
    return true;
  }

  /// Hashes what an earlier run left and clears `live` for what is whole.
  void keep_whole_parts() {
    std::vector<char*> candidates;  // their `live`
    std::vector<std::string> names;
    size_t n_parts = 0;
    each_part([&](const CutTp&, const PartLayout& part, const std::string& name, char& live) {
      ++n_parts;
      const auto noted = found_.candidates.find(name);
      std::error_code error;
      if (noted == found_.candidates.end() || noted->second.size != part.file_bytes()) return;
      if (!fs::is_regular_file(fs::symlink_status(out_ / name, error))) return;
      if (fs::file_size(out_ / name, error) != part.file_bytes()) return;
      candidates.push_back(&live);
      names.push_back(name);
    });
    read_parts(names, [&](size_t i, PartDigest digest) {
      const JournalPart& noted = found_.candidates.at(names[i]);
      const bool whole = digest.xxh3_128 == noted.xxh3_128 &&
                         (noted.leaves.empty() || noted.leaves == listing(leaf_bytes(digest.leaves)).xxh3_128);
      if (!whole) return note(str("'", names[i], "' is not what was written: it is written anew"));
      *candidates[i] = 0;
      report_.bytes_kept += digest.size - kDataBegin;
      digests_[names[i]] = std::move(digest);
    });
    if (!digests_.empty()) note(str("resumed: ", digests_.size(), " of ", n_parts, " parts are there"));
  }

  /// Hashes parts from storage, past the page cache where that is possible, and calls fn(i, digest), one at a time.
  template <class Fn>
  void read_parts(const std::vector<std::string>& names, Fn&& fn) const {
    uint64_t total = 0;
    for (const std::string& name : names) total += fs::file_size(out_ / name);
    std::atomic<uint64_t> done{0};
    std::mutex mutex;
    for_each_file(
        names.size(), options_.n_threads,
        [&](size_t i, std::span<std::byte> buffer) {
          PartDigest digest =
              digest_file(*File::open(out_ / names[i], FileRole::checkpoint), buffer, options_.stop, done);
          const std::lock_guard lock(mutex);
          fn(i, std::move(digest));
        },
        [&] {
          if (options_.progress) options_.progress({"verifying", done.load(), total});
        });
  }

  /// Calls fn(cut, part, name, live) for every part of every rank that is not taken over.
  template <class Fn>
  void each_part(Fn&& fn) {
    for (CutTp& cut : cuts_) {
      for (size_t p = 0; p < cut.layout.parts.size(); ++p) {
        for (size_t rank = 0; rank < cut.live[p].size(); ++rank) {
          fn(cut, cut.layout.parts[p],
             rank_directory(cut.layout.tp, static_cast<int>(rank)) + "/" + cut.layout.parts[p].name, cut.live[p][rank]);
        }
      }
    }
  }

  std::set<std::string> kept_names() const {
    std::set<std::string> keep;
    for (const auto& [name, digest] : digests_) keep.insert(name);
    if (found_.trusted) {
      for (const auto& [name, file] : found_.manifest->files) keep.insert(name);
    }
    return keep;
  }

  void plan_memory() {
    uint64_t n_open = 0, max_row = 0;
    for (const CutTp& cut : cuts_) n_open += static_cast<uint64_t>(cut.layout.tp);
    for (const StoredTensor& tensor : tensors_) max_row = std::max(max_row, tensor.row_bytes());
    buffers_ = plan_buffers(options_.memory_bytes, options_.n_threads, n_open, max_row);
  }

  void check_space() {
    uint64_t needed = 0, reclaimed = 0;
    each_part([&](const CutTp&, const PartLayout& part, const std::string&, char live) {
      if (!live) return;
      needed += part.file_bytes();
      to_write_ += part.file_bytes();
    });
    for (const auto& [name, content] : top_) needed += content.size() + kPageBytes;
    needed += uint64_t{1} << 20;  // indexes, leaves, manifest, journal
    stale_ = stale_files(out_, kept_names(), found_.trusted);
    for (const fs::path& path : stale_) {
      std::error_code error;
      const uintmax_t size = fs::file_size(path, error);
      if (!error) reclaimed += size;
    }
    const uint64_t available = free_space(out_) + reclaimed;
    if (needed <= available) return;
    throw Error(ErrorKind::io, str("'", out_.string(), "': ", human_bytes(static_cast<double>(needed)), " are needed (",
                                   needed, " bytes), ", human_bytes(static_cast<double>(available)), " are available (",
                                   available, " bytes)"));
  }

  void write_parts() {
    JournalContent journal{head_, {}};
    for (const auto& [name, digest] : digests_) {
      journal.parts[name] = {digest.size, digest.xxh3_128, listing(leaf_bytes(digest.leaves)).xxh3_128};
    }
    Journal noted(out_, journal, hook_);
    if (found_.has_ready && !found_.trusted)
      remove_and_sync("READY");                              // what follows removes files that it vouches for
    if (!found_.manifest) remove_and_sync("manifest.json");  // by --force: what it vouched for goes
    remove_stale(out_, stale_, hook_);
    prepare_striping(out_, options_.note);
    for (const CutTp& cut : cuts_) {
      for (int rank = 0; rank < cut.layout.tp; ++rank)
        fs::create_directories(out_ / rank_directory(cut.layout.tp, rank));
    }
    if (to_write_ == 0) return;
    std::vector<std::string> written;
    const CutJob job{source_,
                     tensors_,
                     cuts_,
                     out_,
                     buffers_,
                     options_.stop,
                     hook_,
                     [&](const std::string& name, PartDigest digest) {
                       noted.add(name, digest);
                       written.push_back(name);
                       report_.bytes_written += digest.size - kDataBegin;
                       digests_[name] = std::move(digest);
                     },
                     [&](uint64_t bytes) {
                       if (options_.progress) options_.progress({"writing", bytes, to_write_});
                     }};
    run_pipeline(job);
    if (options_.progress) options_.progress({"writing", to_write_, to_write_});
    read_back(written);
  }

  /// Servers can lose what they have acknowledged and synced: GlusterFS pieces of a file whose brick was full a moment
  /// before (gluster/glusterfs#4686). So what lies on them is read back before READY vouches for it. A part that
  /// differs stays in the journal, and the next call writes it anew.
  void read_back(const std::vector<std::string>& written) const {
    const Mount mount = mount_of(out_);
    if (!options_.read_back && !is_network(mount)) return;
    note(str("reading back what was written", options_.read_back ? "" : str(": it lies on ", mount.type)));
    for (const std::string& name : written) {
      if (hook_) hook_("read back", (out_ / name).native());
    }
    read_parts(written, [&](size_t i, const PartDigest& digest) {
      const PartDigest& sent = digests_.at(written[i]);
      if (digest.xxh3_128 == sent.xxh3_128) return;
      const auto wrong = std::ranges::mismatch(digest.leaves, sent.leaves).in1 - digest.leaves.begin();
      const uint64_t begin = kDataBegin + static_cast<uint64_t>(wrong) * kLeafBytes;
      throw Error(ErrorKind::io,
                  str("'", (out_ / written[i]).string(), "': ", mount.type, " took what was written, and ",
                      "gives other bytes back from ", begin, " on; the same call again writes that part anew"));
    });
  }

  void remove_and_sync(const char* name) const {
    if (remove_file(out_ / name, hook_)) fsync_directory(out_);
  }

  /// The small files, the manifest, READY.
  void finish() {
    Manifest manifest;
    manifest.architecture = std::string(to_string(source_.config().architecture));
    manifest.recipe_dtype = head_.dtype;
    manifest.source_kind = head_.kind;
    manifest.source_fingerprint = head_.fingerprint;
    manifest.tensors = manifest_tensors(tensors_);
    if (found_.trusted) take_over(manifest);
    for (const CutTp& cut : cuts_) add_tp(cut, manifest);
    std::sort(manifest.tps.begin(), manifest.tps.end(),
              [](const ManifestTp& a, const ManifestTp& b) { return a.tp < b.tp; });

    const std::string json = to_json_with(manifest, top_);
    if (options_.stop.stop_requested()) throw Interrupted();
    remove_and_sync("READY");
    for (const auto& [name, content] : late_) put(name, content);
    if (found_.manifest) {
      for (const auto& [name, file] : found_.manifest->files) {
        if (!manifest.files.contains(name))
          remove_file(out_ / name, hook_);  // a small file that the source has no more
      }
    }
    put("manifest.json", json);
    remove_and_sync("journal.jsonl");
    put("READY", listing(json).xxh3_128 + "\n");
  }

  std::string to_json_with(Manifest& manifest, const Files& top) {
    for (const auto& [name, content] : top) put_late(manifest, name, content);
    return to_json(manifest);
  }
  /// To be written when READY is gone, unless it stands there already.
  void put_late(Manifest& manifest, const std::string& name, const std::string& content) {
    const ManifestFile file = listing(content);
    const bool stands = found_.trusted && found_.manifest->files.contains(name) &&
                        found_.manifest->files.at(name).xxh3_128 == file.xxh3_128;
    if (!stands) late_[name] = content;
    manifest.files[name] = file;
  }

  /// Tps that stay as they are, but for configs that the source has changed.
  void take_over(Manifest& manifest) {
    manifest.tps = found_.manifest->tps;
    for (const auto& [name, file] : found_.manifest->files) {
      if (name.starts_with("tp") && name.find('/') != std::string::npos) manifest.files[name] = file;
    }
    for (const ManifestTp& tp : manifest.tps) {
      for (const ManifestRank& rank : tp.ranks) {
        for (const char* name : {"config.json", "generation_config.json"}) {
          manifest.files.erase(rank.directory + "/" + name);
          if (const auto top = top_.find(name); top != top_.end())
            put_late(manifest, rank.directory + "/" + name, top->second);
        }
      }
    }
  }

  void add_tp(const CutTp& cut, Manifest& manifest) {
    manifest.tps.push_back(manifest_tp(source_.config(), cut.layout, tensors_));
    for (int rank = 0; rank < cut.layout.tp; ++rank) {
      std::vector<const PartDigest*> digests;
      for (const ManifestPart& part : manifest.tps.back().ranks[static_cast<size_t>(rank)].parts) {
        const PartDigest& digest = digests_.at(part.file);
        digests.push_back(&digest);
        manifest.files[part.file] = {digest.size, digest.xxh3_128};
      }
      for (const auto& [name, content] : rank_files(top_, cut.layout, tensors_, rank, digests)) {
        put(name, content);
        manifest.files[name] = listing(content);
      }
    }
  }

  const Source& source_;
  const fs::path& out_;
  const ShardOptions& options_;
  const StepHook& hook_;
  JournalHead head_;
  std::vector<StoredTensor> tensors_;
  Files top_;
  Survey found_;
  std::set<int> kept_tps_;
  std::vector<CutTp> cuts_;
  std::map<std::string, PartDigest> digests_;  // of parts that stand, by name
  std::vector<fs::path> stale_;
  uint64_t to_write_ = 0;
  BufferPlan buffers_;
  Files late_;
  ShardReport report_;
};

}  // namespace

ShardReport shard_with_hook(const Source& source, const fs::path& out, const ShardOptions& options,
                            const StepHook& hook) {
  try {
    return Conversion(source, out, options, hook).run();
  } catch (const fs::filesystem_error& e) {
    throw_errno(e.code().value(), "write", e.path1().empty() ? out.native() : e.path1().native());
  }
}

ShardReport shard(const Source& source, const fs::path& out, const ShardOptions& options) {
  return shard_with_hook(source, out, options, StepHook());
}

}  // namespace firstlight
