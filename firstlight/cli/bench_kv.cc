// SPDX-License-Identifier: Apache-2.0
// firstlight bench kv: what each kind of KV cache loses on a text, how fast its steps are, and what it takes.
#include "firstlight/cli/bench_kv.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/kv_calibration.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/launch.h"
#include "firstlight/cli/session.h"
#include "firstlight/cli/token_ids.h"
#include "firstlight/model/kv_quality.h"

namespace firstlight::cli {

namespace {

struct BenchKvOptions {
  SessionOptions session;
  std::vector<std::string> kinds, texts, ids;
  std::vector<int64_t> contexts;
  std::vector<int> batches{1};
  int64_t window = 2048, skip = 256;
  int max_windows = 0, steps = 16;
  std::string calibration;
  bool speed = true, json = false;
};

/// The windows of all texts; what is left of a text behind its last whole window does not count.
std::vector<std::vector<int>> windows_of(const BenchKvOptions& options, Session& session) {
  std::vector<std::vector<int>> windows;
  size_t n_tokens = 0;
  const auto cut = [&](const std::vector<int>& ids) {
    n_tokens += ids.size();
    const auto length = static_cast<size_t>(options.window);
    for (size_t at = 0; at + length <= ids.size(); at += length)
      windows.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(at),
                           ids.begin() + static_cast<std::ptrdiff_t>(at + length));
  };
  for (const std::string& file : options.texts) {
    const std::string content = read_text(file);
    require_utf8(content, str("'", file, "'"));
    cut(session.text().tokenizer->encode(content));
  }
  for (const std::string& file : options.ids) cut(read_ids(file, session.config().vocab_size));
  if (windows.empty())
    throw Error(ErrorKind::bad_input, str("bench kv: ", n_tokens, " tokens of text, and no text fills a window of ",
                                          options.window, ": more text, or a smaller --window"));
  if (options.max_windows > 0 && std::ssize(windows) > options.max_windows)
    windows.resize(static_cast<size_t>(options.max_windows));
  return windows;
}

std::vector<KvKind> kinds_of(const BenchKvOptions& options) {
  if (options.kinds.empty()) return {std::begin(kKvKinds) + 1, std::end(kKvKinds)};  // all but f32
  std::vector<KvKind> kinds;
  for (const std::string& name : options.kinds) {
    const KvKind kind = *kv_kind_from(name);
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
  }
  return kinds;
}

nlohmann::ordered_json measure_quality(const Context& context, const BenchKvOptions& options, Session& session,
                                       const std::vector<std::vector<int>>& windows) {
  const ModelConfig& config = session.config();
  std::vector<RankWeights>& weights = session.load().weights();
  std::shared_ptr<const KvMeans> means;
  if (!options.calibration.empty())
    means = std::make_shared<KvMeans>(read_kv_calibration(options.calibration, config, session.fingerprint()).means);
  std::vector<KvColumn> columns;
  columns.push_back(make_kv_column(config, weights, KvKind::f32, options.window, nullptr, session.n_threads()));
  for (const KvKind kind : kinds_of(options)) {
    if (kind == KvKind::f32) continue;
    columns.push_back(make_kv_column(config, weights, kind, options.window, is_compressed(kind) ? means : nullptr,
                                     session.n_threads()));
  }
  KvQuality quality(std::move(columns), {options.window, options.skip}, session.n_threads());
  ProgressBar bar(context);
  for (size_t i = 0; i < windows.size(); ++i) {
    bar.update("windows", i, windows.size());
    quality.window(windows[i], context.stop);
  }
  bar.clear();
  return quality.to_json();
}

std::string joined(const std::vector<std::string>& texts, const std::vector<std::string>& ids) {
  std::string all;
  for (const auto* names : {&texts, &ids}) {
    for (const std::string& name : *names) all += str(all.empty() ? "'" : ", '", name, "'");
  }
  return all;
}

/// A GPU has plain kernels alone for the codes below 4 bits: minutes for a long prompt, so they are timed when asked
/// for.
std::vector<KvKind> timed_kinds(const BenchKvOptions& options, const Session& session) {
  if (!options.kinds.empty() || session.device().kind == Device::Kind::cpu) return kinds_of(options);
  return {KvKind::bf16, KvKind::tq8, KvKind::k8v4, KvKind::tq4};
}

/// What a user waits for gladly: a CPU computes some hundred tokens of a prompt a second for each kind.
std::vector<int64_t> contexts_of(const BenchKvOptions& options, const Session& session) {
  std::vector<int64_t> contexts = options.contexts;
  if (contexts.empty()) {
    contexts = {512, 2048};
    if (session.device().kind == Device::Kind::cuda) contexts = {512, 4096, 32000};
  }
  const int64_t most = session.config().max_context - tokens_of_steps(options.steps);
  for (const int64_t context : options.contexts) {
    if (context > most)
      throw Error(ErrorKind::bad_input, str("--contexts ", context, ": the model has positions for ",
                                            session.config().max_context, ", of which the steps take some"));
  }
  std::erase_if(contexts, [&](int64_t context) { return context > most; });
  if (contexts.empty())
    throw Error(ErrorKind::bad_input, "the model's context is too short for the steps: choose --contexts and --steps");
  return contexts;
}

int run_bench_kv(Context& context, BenchKvOptions options) {
  context.json = options.json;
  refuse_launched("bench kv");
  const bool has_text = !options.texts.empty() || !options.ids.empty();
  if (!has_text && !options.speed)
    throw Error(ErrorKind::bad_input, "bench kv --no-speed: nothing to measure without --text or --ids");
  if (!has_text && !options.calibration.empty())
    throw Error(ErrorKind::bad_input, "--kv-calibration is for quality, which wants --text or --ids");
  if (options.window < options.skip + 2)
    throw Error(ErrorKind::bad_input, str("--window ", options.window, " with --skip ", options.skip,
                                          ": a window has two positions that are scored, at least"));
  options.session.kv = "f32";
  options.session.most_context = 1;  // the caches are not the session's
  Session& session = Session::make(context, options.session, !options.texts.empty(), /*with_runner=*/false);
  if (has_text && options.window > session.config().max_context)
    throw Error(ErrorKind::bad_input,
                str("--window ", options.window, ": the model has positions for ", session.config().max_context));
  // What is wrong with the words is said before anything is measured.
  KvSpeedOptions speed{timed_kinds(options, session), {}, options.batches, options.steps, session.n_threads()};
  if (options.speed) speed.contexts = contexts_of(options, session);
  std::vector<std::vector<int>> windows;
  if (has_text) windows = windows_of(options, session);
  session.wait();
  BenchKvReport report;
  report.model = options.session.model;
  report.device = session.device().kind == Device::Kind::cpu ? str(session.n_threads(), " threads of the CPU")
                                                             : to_string(session.device());
  report.tp = session.tp();
  report.config = session.config();
  report.kinds = kinds_of(options);
  if (has_text) {
    say(context, str("quality: ", windows.size(), " windows of ", options.window, " tokens, ", report.kinds.size(),
                     " kinds beside an f32 cache …"));
    report.text = joined(options.texts, options.ids);
    report.quality = measure_quality(context, options, session, windows);
  } else {
    say(context, "quality is measured on a text: --text FILE");
  }
  if (options.speed) {
    say(context, "speed: prompts of made-up tokens, then steps, the kinds in turn …");
    report.speed = measure_kv_speed(context, session.config(), session.load().weights(), speed);
  }
  if (options.json) {
    print_json(to_json(report));
  } else {
    print(to_markdown(report));
  }
  return 0;
}

}  // namespace

void add_bench_kv(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<BenchKvOptions>();
  CLI::App* command = bench.add_subcommand(
      "kv", "KV caches: what each kind loses beside an f32 cache on a text, how fast its steps are, what it takes");
  SessionOptions& session = options->session;
  command->add_option("MODEL", session.model, "Hugging Face directory, .gguf file or rank checkpoint")->required();
  command->add_option("--tp", session.tp, "Tensor-parallel ranks (default: as run)")->check(whole_number(1, 1024));
  command->add_option("--device", session.device, "auto, cpu, cuda (ranks on GPUs 0, 1, …) or cuda:N (all on that one)")
      ->capture_default_str();
  command->add_option("--dtype", session.dtype, "Of the weights, when MODEL is no rank checkpoint: bf16 or f32")
      ->check(one_of({"bf16", "f32"}));
  command->add_option("--threads", session.threads, "CPU threads over all ranks (default: usable cores)")
      ->check(whole_number(1, 4096));
  std::vector<std::string> kinds;
  for (const KvKind kind : kKvKinds) kinds.emplace_back(to_string(kind));
  command
      ->add_option("--kv", options->kinds,
                   "Kinds, such as bf16,tq8,tq4; times are compared with the first's (default: all but f32; times on a "
                   "GPU: those of 4 bits and more)")
      ->delimiter(',')
      ->check(one_of(kinds));
  command->add_option("--text", options->texts, "File with text to measure quality on; repeatable");
  command->add_option("--ids", options->ids, "The same as a JSON list of token ids; repeatable");
  command->add_option("--window", options->window, "Tokens of a sequence")
      ->check(whole_number(2, int64_t{1} << 40))
      ->capture_default_str();
  command->add_option("--skip", options->skip, "Positions of a window that are not scored: exact pages hold them")
      ->check(whole_number(0, int64_t{1} << 40))
      ->capture_default_str();
  command->add_option("--max-windows", options->max_windows, "The first of them alone (default: all)")
      ->check(whole_number(1, 1'000'000));
  command->add_option("--kv-calibration", options->calibration, "File of `calibrate` that codes are centred by");
  command
      ->add_option("--contexts", options->contexts,
                   "Tokens that sequences have when steps are timed (default: 512,2048; on a GPU 512,4096,32000)")
      ->delimiter(',')
      ->check(whole_number(1, int64_t{1} << 40));
  command->add_option("--batches", options->batches, "Sequences in a step")
      ->delimiter(',')
      ->check(whole_number(1, 512))
      ->capture_default_str();
  command->add_option("--steps", options->steps, "Steps timed of each kind, context and batch")
      ->check(whole_number(1, 100000))
      ->capture_default_str();
  command->add_flag_callback(
      "--no-speed", [options] { options->speed = false; }, "Quality and memory only");
  command->add_flag("--json", options->json, "One JSON object on stdout, for tools/plot_kv.py");
  command->footer("Example:\n  firstlight bench kv smollm2-ranks --text manual.txt --kv bf16,tq8,tq4 --json > kv.json");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_bench_kv(context, *options); }; });
}

}  // namespace firstlight::cli
