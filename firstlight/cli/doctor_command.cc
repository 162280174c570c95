// SPDX-License-Identifier: Apache-2.0
// firstlight doctor: what this machine can do, what it can't, and what to do about it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "firstlight/base/str.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/doctor.h"

namespace firstlight::cli {

namespace {

struct DoctorOptions {
  std::string directory = ".";
  bool json = false;
};

const char* name_of(Finding::State state) {
  switch (state) {
    case Finding::State::good:
      return "good";
    case Finding::State::info:
      return "info";
    case Finding::State::warning:
      return "warning";
  }
  return "";
}

/// A model's file stands for the directory that it is in.
fs::path directory_of(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored) || fs::is_directory(path, ignored)) return path;
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

int run_doctor(Context& context, const DoctorOptions& options) {
  context.json = options.json;
  const MachineFacts facts = this_machine();
  Findings all = check_machine(facts);
  for (const Findings& more : {check_gpus(facts), check_storage(facts, directory_of(options.directory))}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  const auto n_warnings = std::count_if(
      all.begin(), all.end(), [](const Finding& finding) { return finding.state == Finding::State::warning; });
  if (options.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Finding& finding : all) {
      list.push_back({{"section", finding.section},
                      {"name", finding.name},
                      {"state", name_of(finding.state)},
                      {"value", finding.value},
                      {"advice", finding.advice}});
    }
    print_json({{"n_warnings", n_warnings}, {"findings", list}});
    return 0;
  }
  print(describe(all));
  print(str(n_warnings, n_warnings == 1 ? " warning\n" : " warnings\n"));
  return 0;
}

}  // namespace

std::string describe(const Findings& findings) {
  size_t widest = 0;
  for (const Finding& finding : findings) widest = std::max(widest, finding.name.size());
  std::string text, section;
  for (const Finding& finding : findings) {
    if (finding.section != section) text += (section = finding.section) + "\n";
    const char mark = finding.state == Finding::State::warning ? '!' : ' ';
    text += str(mark, " ", finding.name, std::string(widest - finding.name.size() + 2, ' '), finding.value, "\n");
    if (!finding.advice.empty()) text += str(std::string(widest + 4, ' '), "→ ", finding.advice, "\n");
  }
  return text;
}

void add_doctor(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command =
      app.add_subcommand("doctor", "What this machine can do for a start, what it can't, and what to do");
  command->add_option("DIR", options->directory, "Where models are, or will be; a file: where that is")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer("Example:\n  firstlight doctor models\nWarnings do not change the exit code.");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_doctor(context, *options); }; });
}

}  // namespace firstlight::cli
