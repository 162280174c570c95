// SPDX-License-Identifier: Apache-2.0
// firstlight synth: random weights, as a directory of safetensors or straight as rank files.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/synth_source.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/ckpt_progress.h"
#include "firstlight/cli/model_text.h"

namespace firstlight::cli {

namespace {

struct SynthCommand {
  SynthOptions options;
  std::vector<int> tps;
  std::string out, config_file, part_size = "5GiB", memory = "2GiB", dtype = "bf16";
  bool json = false;
};

/// Rank files, by `shard` itself; returns the bytes written.
uint64_t write_ranks(Context& context, const SynthCommand& command, ProgressBar& bar) {
  ShardOptions options;
  options.tps = command.tps;
  options.part_bytes = command.options.part_bytes;
  options.memory_bytes = parse_size(command.memory, "--memory");
  options.n_threads = command.options.n_threads;
  options.stop = context.stop;
  options.progress = show(bar);
  options.note = [&](const std::string& line) {
    bar.clear();
    say(context, line);
  };
  return shard(*synth_source(command.options), command.out, options).bytes_written;
}

int run_synth(Context& context, SynthCommand command) {
  context.json = command.json;
  if (command.options.like.empty() == command.config_file.empty())
    throw Error(ErrorKind::bad_input, "synth: give one of --like NAME and --config FILE");
  if (!command.config_file.empty()) command.options.config_json = read_text(command.config_file);
  command.options.part_bytes = parse_size(command.part_size, "--part-size");
  if (command.dtype == "fp8") command.options.dtype = DType::f8_e4m3;
  command.options.stop = context.stop;
  ProgressBar bar(context);
  command.options.progress = show(bar);
  const double start = seconds_since_exec();
  const uint64_t bytes = command.tps.empty() ? synth(command.out, command.options) : write_ranks(context, command, bar);
  const double seconds = seconds_since_exec() - start;
  bar.clear();
  say(context, str("'", command.out, "': ", human_bytes(static_cast<double>(bytes)), " of random weights in ",
                   human_seconds(seconds), " (", human_bytes(rate(bytes, seconds)), "/s)"));
  if (command.json)
    print_json(
        {{"out", command.out}, {"bytes", bytes}, {"seconds", seconds}, {"gb_per_s", rate(bytes, seconds) / 1e9}});
  return 0;
}

}  // namespace

void add_synth(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<SynthCommand>();
  std::string names;
  for (const std::string& name : synth_names()) names += str(names.empty() ? "" : ", ", name);
  CLI::App* command = app.add_subcommand("synth", "Random weights in a real model's shapes, for benches");
  command->add_option("--like", options->options.like, str("One of ", names));
  command->add_option("--config", options->config_file, "… or the path of a config.json");
  command->add_option("-o,--out", options->out, "Directory to write")->required()->check(not_empty());
  command
      ->add_option("--tp", options->tps,
                   "Write rank files for these tensor-parallel sizes, such as 1,8, as shard would (default: a Hugging "
                   "Face directory)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(whole_number(1, 1024));
  command
      ->add_option("--dtype", options->dtype,
                   "bf16, or fp8: the layers' matrices at one byte a value, to be loaded, not run (with --tp)")
      ->check(one_of({"bf16", "fp8"}))
      ->capture_default_str();
  command->add_option("--layers", options->options.n_layers, "Layers in place of the model's own number")
      ->check(whole_number(1, 1024));
  command->add_option("--seed", options->options.seed, "The same seed gives the same bytes")
      ->check(seed_number())
      ->capture_default_str();
  command->add_option("--part-size", options->part_size, "Wanted size of a file")->capture_default_str();
  command->add_option("--memory", options->memory, "With --tp: bound of all buffers together")->capture_default_str();
  command->add_option("--threads", options->options.n_threads, "Threads (default: usable cores)")
      ->check(whole_number(1, 4096));
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer(
      "Examples:\n  firstlight synth --like llama-3.2-1b -o synth-1b\n  firstlight synth --like llama-3.1-405b --dtype "
      "fp8 --tp 8 -o synth-405b-ranks");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_synth(context, *options); }; });
}

}  // namespace firstlight::cli
