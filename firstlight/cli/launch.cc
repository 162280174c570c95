// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/launch.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/device/gpus.h"

namespace firstlight::cli {

namespace {

constexpr std::string_view kVariables =
    "one process a rank needs RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them";

std::string text_of(const Variables& variables, const char* name) {
  const char* value = variables(name);
  if (value == nullptr || *value == '\0') throw Error(ErrorKind::bad_input, str(name, " is not set: ", kVariables));
  return value;
}

int number_of(const Variables& variables, const char* name, int least, int most) {
  const std::string text = text_of(variables, name);
  int number = 0;
  const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (wrong != std::errc() || end != text.data() + text.size() || number < least || number > most) {
    throw Error(ErrorKind::bad_input,
                str(name, " is '", text, "', expected a number from ", least, " to ", most, ": ", kVariables));
  }
  return number;
}

/// On one host the ranks that are here are all there are.
void require_one_host(const Variables& variables, const char* name, int expected) {
  if (variables(name) == nullptr) return;
  const int found = number_of(variables, name, 0, 1 << 20);
  if (found == expected) return;
  throw Error(ErrorKind::unsupported, str(name, " is ", found, " and not ", expected,
                                          ": the ranks are on several hosts; one process a rank is done within one"));
}

/// A second after the failure: who waited for the rank, or is it, has said it by then. What is left is stuck in
/// something else: a read or a computation that nobody needs any more, or its own end, behind a GPU that waits.
void end_with(const std::exception_ptr& cause, bool json) {
  std::this_thread::sleep_for(std::chrono::seconds(1));
  if (!take_last_word()) return;  // someone is about to end the process
  int code = interrupted_exit_code();
  std::string kind = "interrupted", what = "a rank was interrupted";
  try {
    std::rethrow_exception(cause);
  } catch (const Error& e) {
    code = exit_code(e.kind());
    kind = to_string(e.kind());
    what = e.what();
  } catch (const Interrupted&) {
  }
  say_failure(json, kind, what);
  _exit(code);
}

/// Before there are other threads. So a launcher that hides GPUs itself is no special case; memory of a GPU that is
/// hidden opens all the same. Two H200, two processes: contexts stand 0.38 to 0.42 s after exec, as both do in one.
void show_own_gpu(const std::string& device, const ProcessRank& me) {
  if (device != "cpu") ::setenv("NCCL_NVLS_ENABLE", "0", 1);  // NcclApi::open() would, among threads
  const std::vector<Device> likely = likely_devices(device, me.size);
  if (likely.empty() || (device != "auto" && device != "cuda")) return;  // who names one has it for all ranks
  show_gpus(1, likely[static_cast<size_t>(me.rank)].index);
  if (std::count(likely.begin(), likely.end(), likely[0]) == 1) use_few_queues();
}

}  // namespace

std::optional<ProcessRank> launched_rank(const Variables& variables) {
  if (variables("RANK") == nullptr && variables("WORLD_SIZE") == nullptr) return std::nullopt;
  const int size = number_of(variables, "WORLD_SIZE", 1, 1 << 20);
  const int rank = number_of(variables, "RANK", 0, size - 1);
  if (size == 1) return std::nullopt;
  require_one_host(variables, "LOCAL_WORLD_SIZE", size);
  require_one_host(variables, "LOCAL_RANK", rank);
  const std::string address = text_of(variables, "MASTER_ADDR");
  return ProcessRank{rank, size, str(address, ":", number_of(variables, "MASTER_PORT", 1, 65535))};
}

std::optional<ProcessRank> launched_rank() {
  return launched_rank([](const char* name) { return std::getenv(name); });
}

void join_launched(Context& context, SessionOptions& options) {
  const std::optional<ProcessRank> me = launched_rank();
  if (!me) return;
  if (options.tp != 0 && options.tp != me->size)
    throw Error(ErrorKind::bad_input, str("--tp ", options.tp, ", but the launcher has started ", me->size,
                                          " ranks (WORLD_SIZE): leave --tp out, or start as many"));
  options.tp = me->size;
  show_own_gpu(options.device, *me);
  if (me->rank != 0) {
    context.quiet = true;
    context.json = false;
    exit_at_once(true);  // a signal ends it: rank 0 decides what becomes of the answer
  }
  const Timeline::Scope scope(&context.timeline, "ranks meet");
  context.processes = ProcessComm::join(
      *me, {.stop = context.stop,
            .on_failure = [json = context.json](const std::exception_ptr& cause) { end_with(cause, json); }});
}

bool follows(const Context& context) { return context.processes && context.processes->rank() != 0; }

int follow(Context& context, const SessionOptions& options, bool with_runner) {
  Session& session = Session::make(context, options, /*with_text=*/false, with_runner);
  session.follow();
  return 0;
}

void refuse_launched(std::string_view command) {
  if (!launched_rank()) return;
  throw Error(ErrorKind::unsupported,
              str(command,
                  ": one process a rank is done for run, score and load; without RANK and WORLD_SIZE one "
                  "process has all ranks"));
}

}  // namespace firstlight::cli
