// SPDX-License-Identifier: Apache-2.0
// firstlight bench start: exec → first token, Firstlight's way and the traditional way in turn, each in a fresh
// process.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "firstlight/base/child.h"
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/bench_warm.h"
#include "firstlight/cli/session.h"
#include "firstlight/cli/spread.h"

namespace firstlight::cli {

namespace {

struct BenchStart {
  std::string model, traditional_model, prompt = "Why is the sky blue?", ids_file, device = "auto", reader = "auto";
  int n = 15, tp = 0, threads = 0;
  int64_t max_context = 0;
  bool warm = false, json = false;
};

struct Run {
  double ttft_s = 0;     // exec → first token, by the process itself
  double process_s = 0;  // spawn → exit, seen from outside
  nlohmann::ordered_json report;
};

/// A fresh process of this program; throws if it fails.
Run measure(const std::vector<std::string>& arguments) {
  const ChildEnd end = run_child("/proc/self/exe", arguments);
  Run run;
  run.process_s = end.seconds;
  run.report = nlohmann::ordered_json::parse(end.out, nullptr, false);
  if (end.exit_code != 0 || !run.report.is_object() || !run.report.contains("ttft_s")) {
    // The child has said what is wrong: its kind of failure is ours.
    std::string message = "the measured process failed";
    ErrorKind kind = ErrorKind::bug;
    if (run.report.is_object() && run.report.contains("error")) {
      message = run.report["error"].value("message", message);
      const std::string name = run.report["error"].value("kind", "bug");
      for (const ErrorKind known : {ErrorKind::bad_input, ErrorKind::unsupported, ErrorKind::not_found,
                                    ErrorKind::damaged, ErrorKind::out_of_memory, ErrorKind::io, ErrorKind::device}) {
        if (to_string(known) == name) kind = known;
      }
      if (name == "interrupted") throw Interrupted();
    }
    throw Error(kind, message);
  }
  run.ttft_s = run.report["ttft_s"].get<double>();
  return run;
}

/// The engines that the traditional start stands for check nothing, so it is not made to pay for hashing.
constexpr const char* kVerified =
    "firstlight verified every byte in this time; the traditional start verified nothing (run --traditional does, "
    "first)";

double median(const std::vector<double>& values) { return Spread(values).median; }

struct Series {
  std::string name;
  std::vector<Run> runs;

  std::vector<double> ttft() const {
    std::vector<double> values;
    for (const Run& run : runs) values.push_back(run.ttft_s);
    return values;
  }
  std::vector<double> process() const {
    std::vector<double> values;
    for (const Run& run : runs) values.push_back(run.process_s);
    return values;
  }
  /// The run nearest to the median: its time line is the one to show.
  const Run& typical() const {
    const double middle = median(ttft());
    return *std::min_element(runs.begin(), runs.end(), [&](const Run& a, const Run& b) {
      return std::abs(a.ttft_s - middle) < std::abs(b.ttft_s - middle);
    });
  }
  nlohmann::ordered_json to_json() const {
    const std::vector<double> t = ttft(), p = process();
    return {{"median_ttft_s", median(t)},
            {"min_ttft_s", *std::min_element(t.begin(), t.end())},
            {"max_ttft_s", *std::max_element(t.begin(), t.end())},
            {"median_process_s", median(p)},
            {"ttft_s", t},
            {"process_s", p},
            {"phases", typical().report["phases"]},
            {"load", typical().report["load"]}};
  }
  std::string describe() const {
    const std::vector<double> t = ttft();
    std::array<char, 200> line{};
    std::snprintf(line.data(), line.size(),
                  "%-12s exec → first token: median %.3f s (%.3f – %.3f), whole process %.3f s, %zu runs", name.c_str(),
                  median(t), *std::min_element(t.begin(), t.end()), *std::max_element(t.begin(), t.end()),
                  median(process()), runs.size());
    return line.data();
  }
};

std::vector<Phase> phases_of(const nlohmann::ordered_json& report) {
  std::vector<Phase> phases;
  for (const auto& phase : report["phases"])
    phases.push_back({phase["name"].get<std::string>(), phase["start_s"].get<double>(), phase["end_s"].get<double>()});
  return phases;
}

int run_warm(Context& context, const BenchStart& options) {
  SessionOptions session;
  session.model = options.model;
  session.device = options.device;
  session.reader = options.reader;
  session.tp = options.tp;
  session.threads = options.threads;
  session.max_context = options.max_context;
  session.text_optional = !options.ids_file.empty();
  const std::vector<WarmStart> starts =
      measure_warm_starts(context, session, options.prompt, options.ids_file, options.n);
  std::vector<double> seconds;
  for (const WarmStart& start : starts) seconds.push_back(start.first_token_s);
  const Spread spread(seconds);
  const WarmStart& typical = *std::min_element(starts.begin(), starts.end(), [&](const auto& a, const auto& b) {
    return std::abs(a.first_token_s - spread.median) < std::abs(b.first_token_s - spread.median);
  });
  if (options.json) {
    print_json({{"n", options.n},
                {"warm",
                 {{"median_ttft_s", spread.median},
                  {"min_ttft_s", spread.least},
                  {"max_ttft_s", spread.most},
                  {"ttft_s", seconds},
                  {"phases", to_json(typical.phases)},
                  {"load", to_json(typical.load)}}}});
    return 0;
  }
  print(str(draw_timeline(typical.phases, typical.first_token_s, "the call"), "\n", describe(typical.load), "\n"));
  std::array<char, 160> line{};
  std::snprintf(line.data(), line.size(),
                "call → first token in a process that stands: median %.3f s (%.3f – %.3f), %zu runs\n", spread.median,
                spread.least, spread.most, seconds.size());
  print(line.data());
  return 0;
}

int run_bench_start(Context& context, const BenchStart& options) {
  context.json = options.json;
  if (options.warm) return run_warm(context, options);
  std::vector<std::string> common = {"-n", "1", "--greedy", "--ignore-eos", "--json", "--device", options.device};
  if (options.ids_file.empty()) {
    common.insert(common.end(), {"-p", options.prompt});
  } else {
    common.insert(common.end(), {"--ids", options.ids_file});
  }
  if (options.threads > 0) common.insert(common.end(), {"--threads", str(options.threads)});
  if (options.tp > 0) common.insert(common.end(), {"--tp", str(options.tp)});
  if (options.max_context > 0) common.insert(common.end(), {"--max-context", str(options.max_context)});
  std::vector<std::string> first = {"firstlight", "run", options.model};
  std::vector<std::string> second = {
      "firstlight",    "run",      options.traditional_model.empty() ? options.model : options.traditional_model,
      "--traditional", "--verify", "off"};  // engines check nothing: the baseline does not pay for hashing
  first.insert(first.end(), common.begin(), common.end());
  second.insert(second.end(), common.begin(), common.end());
  first.insert(first.end(), {"--reader", options.reader});  // the traditional path has but one
  Series ours{"firstlight", {}}, traditional{"traditional", {}};
  say(context, "one unmeasured run of each, so that files and program are in the page cache …");
  std::vector<std::string> warming = first;
  warming.back() = "buffered";  // the others may leave the page cache as it is
  measure(warming);
  measure(second);
  for (int i = 0; i < options.n; ++i) {  // in turn, so that a noisy minute hits both
    if (context.stop.stop_requested()) throw Interrupted();
    ours.runs.push_back(measure(first));
    traditional.runs.push_back(measure(second));
  }
  const double ratio = median(traditional.ttft()) / median(ours.ttft());
  if (options.json) {
    print_json({{"n", options.n},
                {"firstlight", ours.to_json()},
                {"traditional", traditional.to_json()},
                {"ratio", ratio},
                {"note", kVerified}});
    return 0;
  }
  for (const Series* series : {&ours, &traditional}) {
    print(
        str(series->name, ": ", draw_timeline(phases_of(series->typical().report), series->typical().ttft_s), "\n\n"));
  }
  std::array<char, 96> line{};
  std::snprintf(line.data(), line.size(),
                "%.2f times as fast (page cache warm, same prompt, fresh process each time)\n", ratio);
  print(ours.describe() + "\n" + traditional.describe() + "\n" + line.data() + kVerified + "\n");
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Action& chosen) {
  CLI::App* bench = app.add_subcommand("bench", "Figures beside what they are to be compared with, in one run");
  bench->require_subcommand(1);
  auto options = std::make_shared<BenchStart>();
  CLI::App* command =
      bench->add_subcommand("start", "exec → first token against the traditional start, in turn, in fresh processes");
  command->add_option("MODEL", options->model, "Rank checkpoint (or any model)")->required();
  command->add_option("--traditional-model", options->traditional_model,
                      "What the traditional start loads (default: MODEL's tp 1 files)");
  command->add_option("-n", options->n, "Pairs")->check(whole_number(1, 10000))->capture_default_str();
  command->add_option("-p,--prompt", options->prompt, "The prompt")->capture_default_str();
  command->add_option("--ids", options->ids_file,
                      "File with the prompt as a JSON list of token ids: for a model without tokenizer");
  command->add_option("--tp", options->tp, "Tensor-parallel ranks")->check(whole_number(1, 1024));
  command->add_option("--threads", options->threads, "CPU threads")->check(whole_number(1, 4096));
  command->add_option("--max-context", options->max_context, "Tokens of context (default: as run)")
      ->check(whole_number(1, int64_t{1} << 40));
  command
      ->add_option("--device", options->device, "auto, cpu, cuda (ranks on GPUs 0, 1, …) or cuda:N (all on that one)")
      ->capture_default_str();
  command
      ->add_option("--reader", options->reader,
                   "Of Firstlight's way: auto, pread, buffered, io_uring or cufile, as run has it")
      ->check(one_of({"auto", "pread", "buffered", "io_uring", "cufile"}))
      ->capture_default_str();
  command->add_flag("--warm", options->warm,
                    "Instead: starts in one process, whose GPU contexts and libraries stand, from the call on");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer("Example:\n  firstlight bench start smollm2-ranks -n 15");
  bench->footer("Example:\n  firstlight bench start smollm2-ranks -n 15");
  add_bench_load(*bench, chosen);
  add_bench_kv(*bench, chosen);
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_bench_start(context, *options); }; });
}

}  // namespace firstlight::cli
