// SPDX-License-Identifier: Apache-2.0
// The command line as a whole: sub-commands, help, and how failures become exit codes.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/comm/process_comm.h"

namespace firstlight::cli {

namespace {

/// The last word of this process, unless another thread has taken it and is about to end the process.
int fail(const Context& context, std::string_view kind, const std::string& what, int code) {
  if (!take_last_word()) std::this_thread::sleep_for(std::chrono::seconds(5));
  say_failure(context.json, kind, what);
  return code;
}

/// "bench start ": the sub-commands that were understood.
std::string command_of(const CLI::App& app) {
  const auto given = app.get_subcommands();
  return given.empty() ? "" : given[0]->get_name() + " " + command_of(*given[0]);
}

bool asks_json(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--json") return true;
  }
  return false;
}

/// The command, and where each rank is a process the others hear of what ends it.
int run_chosen(const Action& chosen, Context& context) {
  try {
    return chosen(context);
  } catch (...) {
    if (!context.processes) throw;
    context.processes->fail(std::current_exception());
    if (context.stop.stop_requested()) throw Interrupted();  // then the signal was the first cause, here or elsewhere
    throw;
  }
}

}  // namespace

int run_program(int argc, char** argv, Context& context) {
  CLI::App app(
      "From \"start\" to a large language model's first token, as fast as the hardware allows, every byte checked.",
      "firstlight");
  app.set_version_flag("--version", str("firstlight ", FIRSTLIGHT_VERSION));
  app.require_subcommand(1);
  app.footer(
      "Example:\n  firstlight shard model.gguf -o model-ranks --tp 1\n  firstlight run model-ranks \"Why is the sky "
      "blue?\"\n\n"
      "MODEL is a Hugging Face directory (safetensors), a .gguf file, or a rank checkpoint made by shard.\n"
      "Exit codes: 0 done, 2 bad input or unsupported, 3 not found, 4 damaged, 5 out of memory, 6 I/O or device, 70 "
      "bug, 130 Ctrl-C, 143 SIGTERM.");
  Action chosen;
  add_shard(app, chosen);
  add_plan(app, chosen);
  add_verify(app, chosen);
  add_inspect(app, chosen);
  add_load(app, chosen);
  add_run(app, chosen);
  add_chat(app, chosen);
  add_score(app, chosen);
  add_calibrate(app, chosen);
  add_tokenize(app, chosen);
  add_synth(app, chosen);
  add_bench(app, chosen);
  add_doctor(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) {  // --help, --version
      const int code = app.exit(e);
      // The process ends by _exit(): what is not written by now never is.
      if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
      return fail(context, "io", str("write 'standard output': ", std::generic_category().message(errno)),
                  exit_code(ErrorKind::io));
    }
    context.json = asks_json(argc, argv);
    const bool bench_alone = app.got_subcommand("bench") && app.get_subcommand("bench")->get_subcommands().empty() &&
                             app.remaining(true).empty();
    const bool unknown = app.get_subcommands().empty() && argc > 1 && argv[1][0] != '-';
    return fail(context, "bad_input",
                str(unknown       ? str("there is no command '", argv[1], "'")
                    : bench_alone ? std::string("bench: say what to measure: firstlight bench start MODEL")
                                  : plain_words(app, e),
                    "\n  see: firstlight ", command_of(app), "--help"),
                2);
  }
  context.json = asks_json(argc, argv);
  try {
    context.stop = watch_signals();
    const int code = run_chosen(chosen, context);
    std::fflush(stdout);
    return code;
  } catch (const Interrupted&) {
    return fail(context, "interrupted", "interrupted", interrupted_exit_code());
  } catch (const std::filesystem::filesystem_error& e) {
    const bool absent = e.code() == std::errc::no_such_file_or_directory || e.code() == std::errc::not_a_directory;
    const ErrorKind kind = absent ? ErrorKind::not_found : ErrorKind::io;
    return fail(context, to_string(kind), str("'", e.path1().string(), "': ", e.code().message()), exit_code(kind));
  } catch (const Error& e) {
    const int code = fail(context, to_string(e.kind()), e.what(), exit_code(e.kind()));
    if (e.kind() == ErrorKind::damaged && !app.got_subcommand("shard"))  // verify has said it, and returned a code
      say(context, "firstlight verify OUT names all that is wrong, and how to mend it");
    return code;
  } catch (const std::bad_alloc&) {
    return fail(context, "out_of_memory", "out of memory: the system gives no more (ulimit -v, the container's limit)",
                exit_code(ErrorKind::out_of_memory));
  } catch (const std::exception& e) {
    return fail(context, "bug", str("internal error: ", e.what()), exit_code(ErrorKind::bug));
  }
}

}  // namespace firstlight::cli
