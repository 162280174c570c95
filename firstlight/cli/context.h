// SPDX-License-Identifier: Apache-2.0
// What every command has: the time line, the wish to stop, where to write. One a process.
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/base/timeline.h"

namespace CLI {
class App;
}

namespace firstlight {
class ProcessComm;
}

namespace firstlight::cli {

struct Context {
  std::stop_token stop;
  Timeline timeline;
  bool json = false;                       ///< one JSON object on stdout; everything for people goes to stderr
  bool quiet = false;                      ///< nothing for people at all
  std::shared_ptr<ProcessComm> processes;  ///< where each rank is a process: this one's end; else null
};

/// A sub-command's work; the return value is the exit code.
using Action = std::function<int(Context&)>;

/// Registers one sub-command with its options on `app`; `chosen` is set when the command line names it.
void add_shard(CLI::App& app, Action& chosen);
void add_plan(CLI::App& app, Action& chosen);
void add_verify(CLI::App& app, Action& chosen);
void add_inspect(CLI::App& app, Action& chosen);
void add_load(CLI::App& app, Action& chosen);
void add_run(CLI::App& app, Action& chosen);
void add_chat(CLI::App& app, Action& chosen);
void add_score(CLI::App& app, Action& chosen);
void add_calibrate(CLI::App& app, Action& chosen);
void add_tokenize(CLI::App& app, Action& chosen);
void add_synth(CLI::App& app, Action& chosen);
void add_bench(CLI::App& app, Action& chosen);
void add_bench_load(CLI::App& bench, Action& chosen);
void add_bench_kv(CLI::App& bench, Action& chosen);
void add_doctor(CLI::App& app, Action& chosen);

/// Parses and runs; returns the process's exit code and never throws.
int run_program(int argc, char** argv, Context& context);

/// One line for people, on stderr (nothing when quiet).
void say(const Context& context, std::string_view line);
/// One JSON value and a newline, on stdout, at once. Throws Error{io} if stdout does not take it.
void print_json(const nlohmann::ordered_json& value);
/// Why the process ends: a line on stderr and, with `json`, {"error": …} on standard output. By write(2), so that any
/// thread may say it whoever is stuck in stdio. Only behind take_last_word(). Does not throw.
void say_failure(bool json, std::string_view kind, std::string_view what);
/// Bytes to stdout, at once (a token must be seen when it is there). Throws Error{io}.
void print(std::string_view text);

/// "2GiB", "512MB", "1.5G" (= GiB), "1048576" → bytes. Throws Error{bad_input} naming the option.
uint64_t parse_size(std::string_view text, std::string_view option);

/// A bar on stderr, if that is a terminal and the work takes over a second: "writing  42 % ▕███   ▏ 1.2 GB/s, 12 s
/// left". update() may be called from several threads.
class ProgressBar {
 public:
  explicit ProgressBar(const Context& context);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(std::string_view what, uint64_t done_bytes, uint64_t total_bytes);
  void clear();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight::cli
