// SPDX-License-Identifier: Apache-2.0
// run --save-prefix and --restore-prefix: keys and values of a prompt's beginning, from and to a file.
#pragma once
#include <cstdint>
#include <future>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "firstlight/cli/load_watch.h"
#include "firstlight/cli/session.h"
#include "firstlight/engine/prefix.h"
#include "firstlight/kv/prefix_file.h"
#include "firstlight/kv/prefix_read.h"
#include "firstlight/kv/prefix_write.h"

namespace firstlight::cli {

struct PrefixOptions {
  std::string save, restore;  ///< files; "": no

  void add_to(CLI::App& command);
};

/// What was done, for the report.
struct PrefixUse {
  struct Transfer {
    std::string file;
    int64_t tokens = 0;  ///< in the file
    uint64_t bytes = 0;
    double begin_s = 0, end_s = 0;  ///< since exec
  };
  Transfer restored, saved;
  std::string reader, why;      ///< of what was restored
  bool behind_weights = false;  ///< it came by the weights' lanes, after them
  std::string computed_by;      ///< of what was restored, if it is other arithmetic than this session's
  int64_t tokens_taken = 0;     ///< of the prompt, that need not be computed again
};

/// A prefix file whose pages come into a session's KV cache while the rest of the start goes on.
class PrefixRestore {
 public:
  /// Opens the file, reads its head and chooses its reader: before the weights are asked for, behind which that would
  /// wait. Throws as PrefixFile; Interrupted.
  PrefixRestore(Context& context, const SessionOptions& options, const fs::path& path);
  ~PrefixRestore();  ///< of one that was not finished: as PrefixRead's
  PrefixRestore(const PrefixRestore&) = delete;
  PrefixRestore& operator=(const PrefixRestore&) = delete;

  /// Queues the pages behind the session's weights; by a reader of their own where that is the better one for this
  /// file, or the weights have none. The session outlives this object. Throws Error{bad_input} for another model's
  /// prefix or another cache's.
  void begin(Session& session, const SessionOptions& options);
  /// Blocks until they are there and checked, and says in `use` what was done. Throws Error{bad_input} if the prompt
  /// does not begin with the prefix, {out_of_memory} if the cache is too small, {damaged}, {io}, what the load failed
  /// of; …; Interrupted.
  Prefix finish(Context& context, Session& session, std::span<const int> prompt, PrefixUse& use);

 private:
  struct OwnLanes;
  Reader::Clock::time_point begin_;  // from which on the deadline of own lanes counts, as a load's does
  LoadWatch watch_;                  // outlives what waits for threads that the kernel does not give back
  PrefixFile file_;
  ReaderChoice choice_;
  std::unique_ptr<OwnLanes> own_lanes_;
  std::unique_ptr<PageTable> pages_;
  std::unique_ptr<PrefixRead> read_;
  std::string reader_, why_;
};

/// A prompt's whole pages, written to a file behind the first token and beside the others.
class PrefixSave {
 public:
  /// Throws Error{bad_input} if the prompt has no whole page, and as require_prefix_place(): before anything is
  /// computed; the file's room is reserved meanwhile, on a thread. Context and session outlive this object.
  PrefixSave(Context& context, Session& session, const fs::path& path, std::span<const int> prompt);
  ~PrefixSave();  ///< one that was not finished ends soon and leaves no file
  PrefixSave(const PrefixSave&) = delete;
  PrefixSave& operator=(const PrefixSave&) = delete;

  /// Request::on_prompt.
  void take(Prefix prompt) { prompt_ = std::move(prompt); }
  /// When the first token is out: blocks until all weights are checked, as nothing is saved that was not computed from
  /// those, and begins to write. Throws what the load failed of.
  void begin();
  /// Blocks until the file is whole; on the engine's thread. Throws as write_prefix(); Interrupted.
  PrefixUse::Transfer finish();

 private:
  Context& context_;
  Session& session_;
  const fs::path path_;
  Prefix prompt_;
  std::stop_source give_up_;
  std::stop_callback<std::function<void()>> on_stop_;
  std::future<std::unique_ptr<PrefixWriter>> reserving_;
  std::future<PrefixUse::Transfer> writing_;  // destroyed first
};

/// What was queued behind the weights while they came has no time of its own: both rates are told, its own from the
/// asking on, and that of weights and prefix together from the load's beginning on.
nlohmann::ordered_json to_json(const PrefixUse& use, const LoadReport& load);
/// Lines for people; "" if nothing was done.
std::string describe(const PrefixUse& use, const LoadReport& load);

}  // namespace firstlight::cli
