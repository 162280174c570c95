// SPDX-License-Identifier: Apache-2.0
// One process a rank: what a launcher (torchrun and its like) says by its variables, and the group that its processes
// make.
#pragma once
#include <functional>
#include <optional>
#include <string>

#include "firstlight/cli/session.h"
#include "firstlight/comm/process_comm.h"

namespace firstlight::cli {

/// The value of an environment variable, or null.
using Variables = std::function<const char*(const char* name)>;

/// RANK of WORLD_SIZE, and MASTER_ADDR:MASTER_PORT as the name of the group. Nothing where neither RANK nor WORLD_SIZE
/// is set, or there is one process in all, which has every rank as a thread. LOCAL_RANK and LOCAL_WORLD_SIZE may be
/// there to say that the ranks are on one host. Throws Error{bad_input} in one line for what is missing or no number,
/// Error{unsupported} for several hosts.
std::optional<ProcessRank> launched_rank(const Variables& variables);
/// The same, by this process's environment.
std::optional<ProcessRank> launched_rank();

/// In a launched process: meets the other ranks (context.processes) and makes options.tp their number. A rank but the
/// first becomes quiet: nothing on stdout, errors alone on stderr. From here on what ends one rank ends all, each with
/// the first cause, within about a second. Throws Error{bad_input} if options.tp says otherwise, and as
/// ProcessComm::join() does.
void join_launched(Context& context, SessionOptions& options);
/// Whether this process computes what rank 0 asks for, and nothing else.
bool follows(const Context& context);
/// All that such a process does, to its end: exit code 0. `with_runner` as rank 0's Session has it; `command` is to be
/// rank 0's.
int follow(Context& context, const SessionOptions& options, bool with_runner);

/// Throws Error{unsupported} in a launched process.
void refuse_launched(std::string_view command);

}  // namespace firstlight::cli
