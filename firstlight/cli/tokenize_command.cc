// SPDX-License-Identifier: Apache-2.0
// firstlight tokenize: text on stdin → ids on stdout.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/cli/model_text.h"
#include "firstlight/cli/standard_input.h"
#include "firstlight/cli/token_ids.h"

namespace firstlight::cli {

namespace {

struct TokenizeOptions {
  std::string model;
  bool json = false, plain = false, no_special = false;
};

int tokenize(Context& context, const TokenizeOptions& options) {
  context.json = options.json;
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  if (!options.json) {
    const std::string text = read_standard_input();
    require_utf8(text, "standard input");
    std::string out;
    for (const int id : tokenizer->encode(text, !options.no_special, !options.plain))
      out += str(out.empty() ? "" : " ", id);
    print(out + "\n");
    return 0;
  }
  exit_at_once(true);
  StandardInput input;
  std::string out;
  size_t number = 0;
  for (std::string line; input.read_line(line);) {
    ++number;
    const nlohmann::json text = nlohmann::json::parse(line, nullptr, false);
    if (!text.is_string()) {
      print(out);  // what was good stays good
      throw Error(ErrorKind::bad_input,
                  str("line ", number, " of standard input is not a JSON string (in UTF-8), such as \"Hello\""));
    }
    out += nlohmann::json{{"ids",
                           tokenizer->encode(text.get_ref<const std::string&>(), !options.no_special, !options.plain)}}
               .dump() +
           "\n";
    if (out.size() > (1u << 16) || !input.has_line()) {  // at once for a peer that waits, in large pieces otherwise
      print(out);
      out.clear();
    }
  }
  print(out);
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand("tokenize", "Text on stdin → token ids");
  command->add_option("MODEL", options->model, "Model of any kind, or a directory with a tokenizer.json")->required();
  command->add_flag("--json", options->json, "One JSON string a line in, one {\"ids\": […]} a line out");
  command->add_flag("--plain", options->plain, "Special tokens written out in the text stay plain text");
  command->add_flag("--no-special", options->no_special, "Do not add BOS or EOS");
  command->footer("Example:\n  echo -n \"Hello, world\" | firstlight tokenize smollm2-ranks");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return tokenize(context, *options); }; });
}

}  // namespace firstlight::cli
