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

void survey_manifest(const fs::path& out, const JournalHead& recipe, bool force, const NoteFn& note, Survey& found) {
  try {
    Manifest manifest = found.has_ready
                            ? read_manifest(out)
                            : parse_manifest(read_text(out / "manifest.json"), (out / "manifest.json").string());
    if (same_model(manifest, recipe)) {
      found.manifest = std::move(manifest);
    } else if (!force) {
      refuse(out,
             str("holds another model or dtype (", manifest.recipe_dtype, " of a ", manifest.source_kind, " source)"));
    } else {
      for (const auto& [name, file] : manifest.files) {
        if (name.find('/') == std::string::npos) found.replaced.push_back(name);
      }
    }
  } catch (const Error& e) {
    if (!force) throw;
    if (note) note(str("not used: ", e.what()));
  }
  if (!found.manifest) return;
  const std::string wrong = first_wrong_size(out, *found.manifest);
  if (found.has_ready && !wrong.empty() && note)
    note(str("'", wrong, "' is missing or cut: the checkpoint is repaired"));
  found.trusted = found.has_ready && wrong.empty() && !force;
  if (found.trusted) return;
  for (const auto& [name, file] : found.manifest->files) {
    if (is_part(name)) found.candidates[name] = {file.size, file.xxh3_128, ""};
  }
}

void survey_journal(const fs::path& out, const JournalHead& recipe, bool force, const NoteFn& note, Survey& found) {
  std::optional<JournalContent> journal;
  try {
    journal = read_journal(out);
  } catch (const Error&) {
    if (!force) throw;
  }
  if (!journal) return;
  JournalHead other_size = journal->head;
  other_size.part_bytes = recipe.part_bytes;
  if (other_size != recipe) {
    if (!force) refuse(out, "holds an unfinished conversion of another model or to another dtype");
    return;
  }
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

bool is_rank_file(std::string name) {
  if (name.ends_with(".partial")) name.resize(name.size() - 8);
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

Survey survey(const fs::path& out, const JournalHead& recipe, bool force, const NoteFn& note) {
  Survey found;
  if (!present(out)) return found;
  if (!fs::is_directory(out)) throw Error(ErrorKind::bad_input, str("'", out.string(), "' is not a directory"));
  found.has_ready = present(out / "READY");
  const bool has_manifest = present(out / "manifest.json"), has_journal = present(out / "journal.jsonl");
  if (!has_manifest && !has_journal) {
    const bool foreign = std::any_of(fs::directory_iterator(out), fs::directory_iterator(), [](const auto& entry) {
      return entry.path().filename() != "journal.jsonl.partial";  // the first thing a conversion writes
    });
    if (foreign && !force) refuse(out, "is neither empty nor a rank checkpoint");
    return found;
  }
  if (has_manifest) survey_manifest(out, recipe, force, note, found);
  if (has_journal) survey_journal(out, recipe, force, note, found);
  return found;
}

std::vector<fs::path> stale_files(const fs::path& out, const std::set<std::string>& keep) {
  std::vector<fs::path> stale;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(out, ignored)) {
    if (entry.path().extension() == ".partial" && entry.is_regular_file(ignored)) stale.push_back(entry.path());
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
