// SPDX-License-Identifier: Apache-2.0
// Fresh processes, for what is measured in them.
#pragma once
#include <string>
#include <vector>

namespace firstlight {

struct ChildEnd {
  int exit_code = 0;   ///< 128 + the signal that ended it
  double seconds = 0;  ///< spawn → exit, seen from outside
  std::string out;     ///< all of its stdout
  std::string err;     ///< the end of its stderr, at most 64 KiB, if it was asked for
};

/// Runs `program` (looked for in PATH if it has no slash) with `arguments`, the first of which is its name; stdin is
/// ours. Blocks until it has ended and its stdout is closed. Throws Error{not_found} if there is no such program,
/// Error{io, device, …} as throw_errno() has it if none can be started.
ChildEnd run_child(const std::string& program, const std::vector<std::string>& arguments, bool with_stderr = false);

}  // namespace firstlight
