// SPDX-License-Identifier: Apache-2.0
// firstlight calibrate: means of a model's keys and values over a text, for --kv-calibration.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/kv_calibration.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/cli/launch.h"
#include "firstlight/cli/session.h"
#include "firstlight/cli/token_ids.h"

namespace firstlight::cli {

namespace {

struct CalibrateOptions {
  SessionOptions session;
  std::string ids_file, text_file, out;
  int64_t window = 2048;
  bool json = false;
};

/// A sequence's first page is never read as codes: its keys, the attention sink's among them, do not count.
constexpr int64_t kFirstToken = kPageTokens;
constexpr int64_t kFewestTokens = 256;

/// One window as a sequence of its own; how many of its tokens count.
int64_t add_window(Context& context, Runner& runner, std::span<const int> ids, std::span<double> sums) {
  PageTable pages(runner.pool());
  const auto n = static_cast<int64_t>(ids.size());
  if (!pages.try_reserve(n))
    throw Error(ErrorKind::out_of_memory,
                str("a window of ", n, " tokens does not fit the KV cache of ", runner.pool().n_pages() * kPageTokens,
                    " tokens; use a smaller --window"));
  std::vector<float> no_logits;
  constexpr int64_t kChunk = 512;  // what Session's runners take at once
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    if (context.stop.stop_requested()) throw Interrupted();
    const auto tokens = ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(std::min(kChunk, n - begin)));
    const SequenceChunk step{tokens, begin, &pages, 0};
    runner.forward({&step, 1}, no_logits);
  }
  if (n <= kFirstToken) return 0;
  runner.sum_keys_and_values(pages, kFirstToken, n, sums);
  return n - kFirstToken;
}

KvCalibration calibrate(Context& context, Session& session, std::span<const int> ids, int64_t window) {
  const ModelConfig& config = session.config();
  std::vector<double> sums(size_t{2} * static_cast<size_t>(config.n_layers * config.n_kv_heads) *
                           static_cast<size_t>(config.head_dim));
  KvCalibration calibration{{config.n_layers, config.n_kv_heads, config.head_dim, {}}, session.fingerprint(), 0};
  ProgressBar bar(context);
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(window)) {
    const size_t n = std::min(static_cast<size_t>(window), ids.size() - begin);
    calibration.n_tokens += add_window(context, session.runner(), ids.subspan(begin, n), sums);
    bar.update("calibrating", (begin + n) * sizeof(int), ids.size() * sizeof(int));
  }
  bar.clear();
  session.wait();
  if (calibration.n_tokens < kFewestTokens)
    throw Error(ErrorKind::bad_input,
                str("calibrate: ", calibration.n_tokens, " tokens stand behind the first ", kFirstToken,
                    " of their window, expected ", kFewestTokens, " at least: the text is too short, or --window is"));
  for (const double sum : sums)
    calibration.means.values.push_back(static_cast<float>(sum / static_cast<double>(calibration.n_tokens)));
  return calibration;
}

int run_calibrate(Context& context, CalibrateOptions options) {
  context.json = options.json;
  refuse_launched("calibrate");
  if (!options.session.kv.empty() || !options.session.kv_calibration.empty())
    throw Error(ErrorKind::bad_input,
                "calibrate: the KV cache is f32 and not centred: leave --kv and "
                "--kv-calibration out");
  if (options.session.device == "auto") options.session.device = "cpu";
  if (options.session.device != "cpu")
    throw Error(ErrorKind::unsupported, str("calibrate --device ", options.session.device, ": it runs on the CPU"));
  if (options.ids_file.empty() == options.text_file.empty())
    throw Error(ErrorKind::bad_input, "calibrate: give one of --ids FILE and --text FILE");
  options.session.kv = "f32";
  options.session.most_context = options.window;
  const bool from_text = options.ids_file.empty();
  const std::string text = from_text ? read_text(options.text_file) : "";
  require_utf8(text, str("'", options.text_file, "'"));
  Session& session = Session::make(context, options.session, from_text);
  const std::vector<int> ids =
      from_text ? session.text().tokenizer->encode(text) : read_ids(options.ids_file, session.config().vocab_size);
  const int64_t window = std::min(options.window, session.max_context());
  const KvCalibration calibration = calibrate(context, session, ids, window);
  const std::string file = to_file(calibration);
  parse_kv_calibration(file, options.out);  // means that are no numbers are said now, not at the next start
  write_durably(options.out, file);
  if (options.json) {
    print_json({{"file", options.out},
                {"bytes", file.size()},
                {"n_tokens", calibration.n_tokens},
                {"window", window},
                {"model", calibration.model}});
    return 0;
  }
  say(context,
      str("'", options.out, "': means of keys and values over ", calibration.n_tokens, " tokens in windows of ", window,
          ", ", human_bytes(static_cast<double>(file.size())), "; use it by --kv-calibration"));
  return 0;
}

}  // namespace

void add_calibrate(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<CalibrateOptions>();
  CLI::App* command = app.add_subcommand(
      "calibrate", "Means of keys and values over a text, which a cache of codes (--kv tq4 …) is centred by");
  options->session.add_to(*command);
  command->add_option("--text", options->text_file, "File with some thousand tokens of text as the model will meet it");
  command->add_option("--ids", options->ids_file, "The same as a JSON list of token ids; -: standard input");
  command->add_option("-o,--out", options->out, "The file to write, for --kv-calibration")
      ->required()
      ->check(not_empty());
  command
      ->add_option("--window", options->window,
                   "Tokens a sequence of the text has at most; as many as contexts will have")
      ->check(whole_number(2, int64_t{1} << 40))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer(
      "Example:\n  firstlight calibrate smollm2-ranks --text manual.txt -o smollm2.kv\n"
      "  firstlight chat smollm2-ranks --kv tq4 --kv-calibration smollm2.kv");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_calibrate(context, *options); }; });
}

}  // namespace firstlight::cli
