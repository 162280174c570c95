// SPDX-License-Identifier: Apache-2.0
// run --save-prefix and --restore-prefix: keys and values of a prompt's beginning, from and to a file.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "firstlight/cli/session.h"
#include "firstlight/engine/prefix.h"

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
    double seconds = 0;
  };
  Transfer restored, saved;
  std::string reader, why;   ///< of what was restored
  std::string computed_by;   ///< of what was restored, if it is other arithmetic than this session's
  int64_t tokens_taken = 0;  ///< of the prompt, that need not be computed again
};

/// The prefix that the options ask for: restored, computed where it is to be saved and was not restored, and saved.
/// Blocks. Empty if neither is asked for. Throws Error{bad_input} if the prompt does not begin with the restored
/// prefix, or the prefix is another model's, another cache's; Error{damaged}, {io}, …; Interrupted.
Prefix prepare_prefix(Context& context, Session& session, const SessionOptions& session_options,
                      const PrefixOptions& options, std::span<const int> prompt, PrefixUse& use);

nlohmann::ordered_json to_json(const PrefixUse& use);
/// Lines for people; "" if nothing was done.
std::string describe(const PrefixUse& use);

}  // namespace firstlight::cli
