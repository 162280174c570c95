// SPDX-License-Identifier: Apache-2.0
// What a conversion finds in OUT: nothing, a finished checkpoint, the rest of an interrupted one, or something that it
// must not touch.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "firstlight/ckpt/journal.h"
#include "firstlight/ckpt/manifest.h"

namespace firstlight {

using NoteFn = std::function<void(const std::string&)>;

struct Survey {
  bool has_ready = false;
  /// Of the same model and dtype. If `trusted`, READY vouches for it and every file has the size it says.
  std::optional<Manifest> manifest;
  bool trusted = false;
  /// Parts that may be whole: to be hashed again. `leaves` may be empty (not noted).
  std::map<std::string, JournalPart> candidates;
};

/// Throws Error{bad_input} if OUT holds another model, and, naming them, if it holds files that no conversion wrote
/// (always in a directory that is no checkpoint; in a checkpoint only with `force`, which is to leave nothing else
/// there). With `force` nothing that is there is taken over.
Survey survey(const fs::path& out, const JournalHead& recipe, bool force, const NoteFn& note);

/// Whether a conversion may have written `name` (relative to OUT).
bool may_be_ours(const std::string& name);
/// Whether a file of that name, if no manifest lists it, is of a conversion that runs or was interrupted: a journal, a
/// .partial, a part, a rank's file. The next conversion takes it over or removes it.
bool is_rest_of_conversion(const std::string& name);

/// Files under OUT that a conversion has made or may have made (parts, rank files, .partial; unless the checkpoint is
/// `trusted`, small files too) and that are not in `keep` (names relative to OUT). Nothing else is ever removed.
std::vector<fs::path> stale_files(const fs::path& out, const std::set<std::string>& keep, bool trusted);
/// Removes them, and rank directories that are empty then.
void remove_stale(const fs::path& out, const std::vector<fs::path>& stale, const StepHook& hook);

/// Held while OUT is written; throws Error{io} if another process holds it.
class OutLock {
 public:
  explicit OutLock(const fs::path& out);
  ~OutLock();
  OutLock(const OutLock&) = delete;
  OutLock& operator=(const OutLock&) = delete;

 private:
  int fd_ = -1;
};

/// Whether an OutLock is held. A conversion that begins in this very moment may be refused by it: ask only where it
/// matters.
bool is_being_written(const fs::path& out);

/// On Lustre: files made under OUT from now on are striped over all OSTs. Elsewhere nothing.
void prepare_striping(const fs::path& out, const NoteFn& note);

}  // namespace firstlight
