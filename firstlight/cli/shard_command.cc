// SPDX-License-Identifier: Apache-2.0
// firstlight shard and verify: the offline commands.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/ckpt_progress.h"
#include "firstlight/cli/model_text.h"
#include "firstlight/text/tokenizer_image.h"

namespace firstlight::cli {

namespace {

struct ShardCommand {
  std::string model, out, dtype, memory = "2GiB", part_size = "4GiB";
  std::vector<int> tps;
  int threads = 0;
  bool force = false, read_back = false, json = false;
};

/// What a start need not work out anew: the tokenizer's image.
std::map<std::string, std::string> derived_files(Context& context, const Source& source) {
  for (const AuxFile& file : source.aux_files()) {
    if (file.name != "tokenizer.json") continue;
    try {
      return {{kTokenizerImage, make_tokenizer_image(file.content)}};
    } catch (const Error& e) {
      say(context, str("no ", kTokenizerImage, " is made, and text will not work with this model: ", e.what()));
    }
  }
  return {};
}

/// Whether the image is that of the tokenizer.json beside it, as one that this program made is.
void check_derived(const fs::path& out, VerifyReport& report) {
  const Manifest manifest = read_manifest(out);
  if (!manifest.files.contains(kTokenizerImage)) return;
  const std::string image = read_listed(out, manifest, kTokenizerImage);
  if (image != make_tokenizer_image(read_listed(out, manifest, "tokenizer.json"))) {
    report.damaged = true;
    report.problems.push_back(
        str("'", (out / kTokenizerImage).native(), "' is not the image of the tokenizer.json beside it"));
  }
}

int run_shard(Context& context, const ShardCommand& options) {
  context.json = options.json;
  const std::unique_ptr<Source> source = open_source(options.model);
  ShardOptions shard_options;
  shard_options.tps = options.tps;
  if (options.dtype == "source") shard_options.dtype = DTypeChoice::source;
  if (options.dtype == "bf16") shard_options.dtype = DTypeChoice::bf16;
  if (options.dtype == "f32") shard_options.dtype = DTypeChoice::f32;
  shard_options.memory_bytes = parse_size(options.memory, "--memory");
  shard_options.part_bytes = parse_size(options.part_size, "--part-size");
  shard_options.force = options.force;
  shard_options.read_back = options.read_back;
  shard_options.n_threads = options.threads;
  shard_options.stop = context.stop;
  ProgressBar bar(context);
  shard_options.progress = show(bar);
  shard_options.note = [&](const std::string& line) {
    bar.clear();
    say(context, line);
  };
  shard_options.derived = derived_files(context, *source);
  ShardReport report;
  try {
    report = shard(*source, options.out, shard_options);
  } catch (const Interrupted&) {
    bar.clear();
    say(context, options.force ? "stopped; the same command without --force goes on where it was"
                               : "stopped; the same command goes on where it was");
    throw;
  }
  bar.clear();
  std::string tps;
  for (const int tp : report.tps) tps += str(tps.empty() ? "" : ", ", tp);
  say(context, str("'", options.out, "' is ready: tp ", tps, ", ", report.dtype, "; wrote ",
                   human_bytes(static_cast<double>(report.bytes_written)), " in ", human_seconds(report.seconds), " (",
                   human_bytes(rate(report.bytes_written, report.seconds)), "/s)",
                   report.bytes_kept > 0 ? str(", kept ", human_bytes(static_cast<double>(report.bytes_kept)),
                                               " that was there (verify reads it again)")
                                         : ""));
  if (options.json) {
    print_json({{"out", options.out},
                {"tps", report.tps},
                {"dtype", report.dtype},
                {"bytes_written", report.bytes_written},
                {"bytes_kept", report.bytes_kept},
                {"seconds", report.seconds},
                {"gb_per_s", rate(report.bytes_written, report.seconds) / 1e9}});
  }
  return 0;
}

struct VerifyCommand {
  std::string out;
  int threads = 0;
  bool json = false;
};

/// What to do about the problems, kind by kind: what mends one kind may destroy what another names.
std::vector<std::string> advice(const VerifyReport& report) {
  if (report.being_written)
    return {"a conversion is writing there: let it end, then verify again; delete nothing meanwhile"};
  if (report.unreadable) return {"not all could be read, so not all was compared"};
  std::vector<std::string> lines;
  if (report.unfinished)
    lines.push_back(
        "a conversion did not end there: run the same shard command again, which goes on where it was; delete none of "
        "its files");
  if (report.damaged)
    lines.push_back(str(
        "to mend it: delete the files named ", lines.empty() && !report.foreign ? "" : "as missing or wrong ",
        "and run the same shard command again, which makes them anew", report.foreign ? "" : "; or give it --force"));
  if (report.foreign)
    lines.push_back("what shard did not write it does not remove, with --force neither: move it away");
  return lines;
}

int run_verify(Context& context, const VerifyCommand& options) {
  context.json = options.json;
  ProgressBar bar(context);
  VerifyReport report = verify(options.out, options.threads, context.stop, show(bar));
  bar.clear();
  if (report.problems.empty()) check_derived(options.out, report);
  for (const std::string& problem : report.problems) say(context, str("firstlight: ", problem));
  const std::vector<std::string> lines = advice(report);
  if (options.json) {
    print_json({{"ok", report.problems.empty()},
                {"files", report.files},
                {"bytes", report.bytes},
                {"leaves", report.leaves},
                {"seconds", report.seconds},
                {"problems", report.problems},
                {"advice", lines}});
  } else {
    print(str(report.problems.empty()
                  ? "ok: "
                  : str(report.problems.size(), report.problems.size() == 1 ? " problem: " : " problems: "),
              report.files, " files, ", human_bytes(static_cast<double>(report.bytes)), " checked in ",
              human_seconds(report.seconds), " (", human_bytes(rate(report.bytes, report.seconds)), "/s), ",
              report.leaves, " leaves\n"));
  }
  if (report.problems.empty()) return 0;
  for (const std::string& line : lines) say(context, line);
  return exit_code(report.unreadable ? ErrorKind::io : ErrorKind::damaged);
}

}  // namespace

void add_shard(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<ShardCommand>();
  CLI::App* command =
      app.add_subcommand("shard", "Cut a checkpoint into one safetensors file set per tensor-parallel rank");
  command->add_option("MODEL", options->model, "Hugging Face directory (safetensors) or .gguf file")->required();
  command->add_option("-o,--out", options->out, "Directory of the rank checkpoint")->required()->check(not_empty());
  command->add_option("--tp", options->tps, "Tensor-parallel sizes, such as 1,2,4,8")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->required()
      ->check(whole_number(1, 1024));
  command
      ->add_option("--dtype", options->dtype,
                   "bf16, f32 or source (default: source; bf16 for a quantised GGUF; f16 becomes bf16)")
      ->check(one_of({"bf16", "f32", "source"}));
  command->add_option("--memory", options->memory, "Bound of all buffers together, at least some MiB a thread")
      ->capture_default_str();
  command->add_option("--part-size", options->part_size, "Wanted size of a part")->capture_default_str();
  command->add_option("--threads", options->threads, "Threads (default: usable cores)")->check(whole_number(1, 4096));
  command->add_flag("--read-back", options->read_back,
                    "Read each written part back before OUT is ready; on a file system of servers always");
  command->add_flag("--force", options->force,
                    "Start anew: what shard wrote in OUT before, any model, is removed first");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer(
      "Interrupted or killed, the same command goes on where it was.\n\nExample:\n  firstlight shard Llama-3.1-8B -o "
      "llama-ranks --tp 1,2,4,8");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_shard(context, *options); }; });
}

void add_verify(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<VerifyCommand>();
  CLI::App* command = app.add_subcommand("verify", "Compare every byte of a rank checkpoint with its manifest");
  command->add_option("OUT", options->out, "Rank checkpoint")->required();
  command->add_option("--threads", options->threads, "Threads (default: usable cores)")->check(whole_number(1, 4096));
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer("Example:\n  firstlight verify llama-ranks");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_verify(context, *options); }; });
}

}  // namespace firstlight::cli
