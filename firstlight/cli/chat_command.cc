// SPDX-License-Identifier: Apache-2.0
// firstlight chat: a conversation in the terminal. Each turn renders the whole conversation through the chat template.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/generate.h"
#include "firstlight/cli/interrupt.h"

namespace firstlight::cli {

namespace {

struct ChatOptions {
  SessionOptions session;
  GenerateOptions generate;
  std::string system;
  bool json = false;
};

nlohmann::ordered_json turn_json(const Answer& answer) {
  return {{"text", answer.text},
          {"ids", answer.ids},
          {"n_prompt", answer.n_prompt},
          {"finish", to_string(answer.finish)},
          {"prompt_tokens_per_s", answer.prompt_tokens_per_s()},
          {"tokens_per_s", answer.tokens_per_s()}};
}

int chat(Context& context, const ChatOptions& options) {
  context.json = options.json;
  require_utf8(options.system, "--system");
  Session& session = Session::make(context, options.session);
  ModelText& text = session.text();
  if (text.chat == nullptr) throw Error(ErrorKind::unsupported, "chat: the model has no chat template; use run --raw");
  EngineOptions engine_options;
  engine_options.max_context = session.max_context();
  engine_options.stop_ids = text.stop_ids;
  Engine engine(session.runner(), text.tokenizer.get(), engine_options);
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  say(context, "Write a message and press Enter. /reset forgets the conversation, /quit or Ctrl-D ends, Ctrl-C stops.");
  bool load_told = false;
  const bool prompts = !options.json && ::isatty(STDIN_FILENO) == 1;
  for (std::string line;;) {
    if (prompts) print("> ");
    exit_at_once(true);
    if (!std::getline(std::cin, line)) break;
    exit_at_once(false);
    if (line == "/quit" || line == "/exit") break;
    if (line == "/reset") {
      messages.resize(options.system.empty() ? 0 : 1);
      continue;
    }
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    messages.push_back({"user", line});
    try {
      require_utf8(line, "this message");
      const Answer answer =
          generate(context, engine, options.generate.request(text.encode_chat(messages)), [&](std::string_view piece) {
            if (!options.json) print(piece);
          });
      const bool cancelled = answer.finish == FinishReason::cancelled;
      if (cancelled && (!options.json || answer.ids.empty())) {
        if (!options.json) print("\n");
        throw Interrupted();
      }
      if (options.json) {
        nlohmann::ordered_json turn = turn_json(answer);
        if (!load_told) {
          turn["ttft_s"] = answer.first_token_s;
          turn["load"] = to_json(session.load().wait());
        }
        print_json(turn);
        if (cancelled) return interrupted_exit_code();
      } else {
        print("\n");
      }
      messages.push_back({"assistant", answer.text});
      if (answer.finish == FinishReason::context_full) say(context, "(the context is full: /reset starts anew)");
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::out_of_memory && e.kind() != ErrorKind::bad_input) throw;
      messages.pop_back();
      say(context, str("firstlight: ", e.what(), " (/reset starts anew)"));
      if (options.json) print_json({{"error", {{"kind", to_string(e.kind())}, {"message", e.what()}}}});
    }
    if (!load_told) say(context, str("(", describe(session.load().wait()), ")"));
    load_told = true;
  }
  if (prompts) print("\n");
  return 0;
}

}  // namespace

void add_chat(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<ChatOptions>();
  options->generate.max_new_tokens = 1024;
  CLI::App* command = app.add_subcommand("chat", "Talk with the model in the terminal, through its chat template");
  options->session.add_to(*command);
  options->generate.add_to(*command);
  command->add_option("--system", options->system, "System message");
  command->add_flag("--json", options->json, "One JSON object a turn on stdout, no prompt");
  command->footer("Example:\n  firstlight chat smollm2-ranks --system \"Answer in one sentence.\"");
  command->callback([options, &chosen] { chosen = [options](Context& context) { return chat(context, *options); }; });
}

}  // namespace firstlight::cli
