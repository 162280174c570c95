// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/shard_state.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/hf_source.h"

extern char** environ;

namespace firstlight {

namespace {

constexpr long kLustreMagic = 0x0BD00BD0;

bool present(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

[[noreturn]] void refuse(const fs::path& out, const std::string& why) {
  throw Error(ErrorKind::bad_input, str("'", out.string(), "' ", why, "; another directory, or --force, is needed"));
}

bool same_model(const Manifest& manifest, const JournalHead& recipe) {
  return manifest.source_fingerprint == recipe.fingerprint && manifest.source_kind == recipe.kind &&
         manifest.recipe_dtype == recipe.dtype;
}

bool is_part(const std::string& name) { return name.ends_with(".safetensors"); }

/// The first file that is missing or has another size than listed; empty if there is none.
std::string first_wrong_size(const fs::path& out, const Manifest& manifest) {
  for (const auto& [name, file] : manifest.files) {
    std::error_code error;
    if (!fs::is_regular_file(fs::symlink_status(out / name, error)) || fs::file_size(out / name, error) != file.size) {
      return name;
    }
  }
  return "";
}

Manifest read_manifest_there(const fs::path& out, bool has_ready) {
  try {
    const fs::path path = out / "manifest.json";
    return has_ready ? read_manifest(out)
                     : parse_manifest(read_text(path, kMostTextBytes, FileRole::checkpoint), path.string());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::damaged && e.kind() != ErrorKind::bad_input) throw;
    throw Error(ErrorKind::damaged, str(e.what(), "; shard --force begins anew"));
  }
}

void survey_manifest(const fs::path& out, const JournalHead& recipe, const NoteFn& note, Survey& found) {
  Manifest manifest = read_manifest_there(out, found.has_ready);
  if (!same_model(manifest, recipe)) {
    refuse(out,
           str("holds another model or dtype (", manifest.recipe_dtype, " of a ", manifest.source_kind, " source)"));
  }
  found.manifest = std::move(manifest);
  const std::string wrong = first_wrong_size(out, *found.manifest);
  if (found.has_ready && !wrong.empty() && note)
    note(str("'", wrong, "' is missing or cut: the checkpoint is repaired"));
  found.trusted = found.has_ready && wrong.empty();
  if (found.trusted) return;
  for (const auto& [name, file] : found.manifest->files) {
    if (is_part(name)) found.candidates[name] = {file.size, file.xxh3_128, ""};
  }
}

void survey_journal(const fs::path& out, const JournalHead& recipe, const NoteFn& note, Survey& found) {
  const std::optional<JournalContent> journal = read_journal(out);
  if (!journal) return;
  JournalHead other_size = journal->head;
  other_size.part_bytes = recipe.part_bytes;
  if (other_size != recipe) refuse(out, "holds an unfinished conversion of another model or to another dtype");
  if (journal->head != recipe) {
    if (note) note("the interrupted conversion had another part size: its parts are written anew");
    return;
  }
  for (const auto& [name, part] : journal->parts) found.candidates[name] = part;
}

/// "tp8" → true.
bool is_numbered(const std::string& name, std::string_view prefix) {
  return name.size() > prefix.size() && name.starts_with(prefix) &&
         std::all_of(name.begin() + static_cast<std::ptrdiff_t>(prefix.size()), name.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::string without_partial(std::string name) {
  if (name.ends_with(".partial")) name.resize(name.size() - std::string_view(".partial").size());
  return name;
}

/// tokenizer.bin is none of the source's: it is worked out of tokenizer.json (docs/rank-checkpoint.md §4.1).
bool is_small_file(const std::string& name) {
  if (name == "tokenizer.bin") return true;
  const std::span<const char* const> known = small_file_names();
  return std::find(known.begin(), known.end(), name) != known.end();
}

bool is_rank_file(std::string name) {
  name = without_partial(std::move(name));
  for (const char* known : {"config.json", "generation_config.json", "model.safetensors.index.json", "leaves.xxh3"}) {
    if (name == known) return true;
  }
  return name.starts_with("model-") && name.ends_with(".safetensors");
}

/// Calls fn for each directory OUT/tpN/rank-NN that is one (no link).
void each_rank_directory(const fs::path& out, const std::function<void(const fs::path&)>& fn) {
  std::error_code ignored;
  for (const auto& tp : fs::directory_iterator(out, ignored)) {
    if (!is_numbered(tp.path().filename(), "tp") || !fs::is_directory(tp.symlink_status())) continue;
    for (const auto& rank : fs::directory_iterator(tp.path(), ignored)) {
      if (is_numbered(rank.path().filename(), "rank-") && fs::is_directory(rank.symlink_status())) fn(rank.path());
    }
  }
}

}  // namespace

bool may_be_ours(const std::string& name) {
  const fs::path path(name);
  const std::vector<fs::path> steps(path.begin(), path.end());
  if (steps.size() == 3) return is_numbered(steps[0], "tp") && is_numbered(steps[1], "rank-") && is_rank_file(steps[2]);
  const std::string top = without_partial(name);
  return top == "READY" || top == "manifest.json" || top == "journal.jsonl" || is_small_file(top);
}

bool is_rest_of_conversion(const std::string& name) {
  const bool of_its_own = name.find('/') != name.npos || name.ends_with(".partial") || name == "journal.jsonl";
  return of_its_own && may_be_ours(name);
}

namespace {

/// By force everything that a conversion wrote goes. What it did not write is not ours to remove, and a checkpoint with
/// it inside would fail its own verify.
void require_nothing_foreign(const fs::path& out, bool is_checkpoint) {
  std::vector<std::string> foreign;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(out, error); !error && entry != fs::recursive_directory_iterator();
       entry.increment(error)) {
    if (fs::is_directory(entry->symlink_status())) continue;
    const std::string name = entry->path().lexically_relative(out).generic_string();
    if (!is_checkpoint || !may_be_ours(name)) foreign.push_back(name);
  }
  if (error) throw_errno(error.value(), "list", out.string());
  if (foreign.empty()) return;
  std::sort(foreign.begin(), foreign.end());
  std::string names;
  for (size_t i = 0; i < std::min<size_t>(foreign.size(), 3); ++i) names += str(i == 0 ? "'" : ", '", foreign[i], "'");
  if (foreign.size() > 3) names += str(" and ", foreign.size() - 3, " more");
  throw Error(ErrorKind::bad_input, str("'", out.string(), "' holds ", names,
                                        ", which shard did not write: move it away or choose another directory"));
}

}  // namespace

Survey survey(const fs::path& out, const JournalHead& recipe, bool force, const NoteFn& note) {
  Survey found;
  if (!present(out)) return found;
  if (!fs::is_directory(out)) throw Error(ErrorKind::bad_input, str("'", out.string(), "' is not a directory"));
  found.has_ready = present(out / "READY");
  const bool has_manifest = present(out / "manifest.json"), has_journal = present(out / "journal.jsonl");
  const bool is_checkpoint = found.has_ready || has_manifest || has_journal;
  if (force || !is_checkpoint) {
    // journal.jsonl.partial is the first thing that a conversion writes.
    require_nothing_foreign(out, is_checkpoint || present(out / "journal.jsonl.partial"));
    if (is_checkpoint && note)
      note(str("--force: what was converted into '", out.string(), "' before will be removed"));
    return found;
  }
  if (has_manifest) survey_manifest(out, recipe, note, found);
  if (has_journal) survey_journal(out, recipe, note, found);
  return found;
}

std::vector<fs::path> stale_files(const fs::path& out, const std::set<std::string>& keep, bool trusted) {
  std::vector<fs::path> stale;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(out, ignored)) {
    const std::string name = entry.path().filename();
    if (!entry.is_regular_file(ignored) || keep.contains(name)) continue;
    if (name.ends_with(".partial") ? may_be_ours(name) : !trusted && is_small_file(name)) stale.push_back(entry.path());
  }
  each_rank_directory(out, [&](const fs::path& rank) {
    for (const auto& entry : fs::directory_iterator(rank, ignored)) {
      const std::string name = entry.path().lexically_relative(out).generic_string();
      if (is_rank_file(entry.path().filename()) && !keep.contains(name)) stale.push_back(entry.path());
    }
  });
  std::sort(stale.begin(), stale.end());
  return stale;
}

void remove_stale(const fs::path& out, const std::vector<fs::path>& stale, const StepHook& hook) {
  for (const fs::path& path : stale) remove_file(path, hook);
  std::vector<fs::path> ranks;
  each_rank_directory(out, [&](const fs::path& rank) { ranks.push_back(rank); });
  std::error_code ignored;
  for (const fs::path& rank : ranks) {
    if (::rmdir(rank.c_str()) == 0) ::rmdir(rank.parent_path().c_str());  // both only if empty
  }
}

OutLock::OutLock(const fs::path& out) : fd_(::open(out.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (fd_ < 0) throw_errno(errno, "open", out.string());
  // A file system without locks (Lustre mounted without flock) answers ENOSYS or ENOTSUP: then there is no guard.
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(fd_);
    throw Error(ErrorKind::io, str("'", out.string(), "' is being written by another conversion"));
  }
}

OutLock::~OutLock() { ::close(fd_); }

bool is_being_written(const fs::path& out) {
  const int fd = ::open(out.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool held = ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return held;
}

void prepare_striping(const fs::path& out, const NoteFn& note) {
  struct statfs info {};
  if (::statfs(out.c_str(), &info) != 0 || info.f_type != kLustreMagic) return;
  const std::string path = fs::absolute(out).string();
  const std::vector<std::string> words{"lfs", "setstripe", "-c", "-1", "-S", "16M", path};
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  int status = -1;
  if (::posix_spawnp(&pid, "lfs", nullptr, nullptr, argv.data(), environ) == 0) {
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
  }
  if (!note) return;
  if (status == 0) {
    note("Lustre: files are striped over all OSTs, 16 MiB a stripe");
  } else {
    note(
        str("Lustre, and lfs did not run: for full speed run  lfs setstripe -c -1 -S 16M ", path, "  and shard again"));
  }
}

}  // namespace firstlight
