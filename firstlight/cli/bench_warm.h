// SPDX-License-Identifier: Apache-2.0
// firstlight bench start --warm: a model that starts on demand in a process that stands.
#pragma once
#include <string>
#include <vector>

#include "firstlight/cli/context.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {

struct WarmStart {
  double first_token_s = 0;   ///< the call → first token
  std::vector<Phase> phases;  ///< since the call
  LoadReport load;
};

/// Opens the model, makes one token and lets all of it go, n + 1 times in this process; the first round, in which GPUs'
/// contexts, libraries and kernels come up and the page cache is filled, is not among the results. `ids_file`: the
/// prompt as a JSON list of ids, or
/// "". Throws as Session does.
std::vector<WarmStart> measure_warm_starts(Context& context, const SessionOptions& options, const std::string& prompt,
                                           const std::string& ids_file, int n);

}  // namespace firstlight::cli
