// SPDX-License-Identifier: Apache-2.0
// firstlight load: all ranks into memory, every byte checked; a report, and the end.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/launch.h"

namespace firstlight::cli {

namespace {

struct LoadCommand {
  SessionOptions session;
  bool json = false;
};

int run_load(Context& context, LoadCommand options) {
  context.json = options.json;
  join_launched(context, options.session);
  if (follows(context)) return follow(context, options.session, /*with_runner=*/false);
  Session& session = Session::make(context, options.session, /*with_text=*/false, /*with_runner=*/false);
  const LoadReport report = session.wait();
  const double end = seconds_since_exec();
  if (options.json) {
    print_json({{"load", to_json(report)},
                {"phases", to_json(context.timeline.phases())},
                {"seconds_since_exec", end},
                {"device", to_string(session.device())},
                {"tp", session.tp()}});
    return 0;
  }
  say(context, draw_timeline(context.timeline.phases(), end));
  print(describe(report) + "\n");
  return 0;
}

}  // namespace

void add_load(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<LoadCommand>();
  CLI::App* command = app.add_subcommand("load", "Load all ranks in parallel, print the report, and exit");
  options->session.add_to(*command);
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer("Example:\n  firstlight load smollm2-ranks --tp 3");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_load(context, *options); }; });
}

}  // namespace firstlight::cli
