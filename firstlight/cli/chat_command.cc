// SPDX-License-Identifier: Apache-2.0
// firstlight chat: a conversation in the terminal. Each turn renders the whole conversation through the chat template.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/generate.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/cli/launch.h"
#include "firstlight/cli/standard_input.h"

namespace firstlight::cli {

namespace {

constexpr int kCtrlC = 130;

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
          {"n_shared", answer.n_shared},
          {"prefill", answer.prefill()},
          {"finish", to_string(answer.finish)},
          {"prompt_tokens_per_s", answer.prompt_tokens_per_s()},
          {"tokens_per_s", answer.tokens_per_s()}};
}

/// A conversation over a started model.
class Chat {
 public:
  Chat(Context& context, const ChatOptions& options, Session& session, const EngineOptions& engine_options)
      : context_(context),
        options_(options),
        session_(session),
        engine_(session.runner(), session.text().tokenizer.get(), engine_options) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  /// Answers one message. One that cannot be answered is said, and is as if it had not been written.
  void take(const std::string& line, const std::stop_token& stop) {
    messages_.push_back({"user", line});
    try {
      require_utf8(line, "this message");
      answer(stop);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::out_of_memory && e.kind() != ErrorKind::bad_input) throw;
      messages_.pop_back();
      refuse(e.kind(), e.what(), " (/reset starts anew)");
    }
    if (!load_told_) say(context_, str("(", describe(session_.wait()), ")"));
    load_told_ = true;
  }

  /// Says that a line has no answer, and why; with --json every line has its object.
  void refuse(ErrorKind kind, const std::string& why, std::string_view advice = "") {
    say(context_, str("firstlight: ", why, advice));
    if (options_.json) print_json({{"error", {{"kind", to_string(kind)}, {"message", why}}}});
    if (code_ == 0) code_ = exit_code(kind);
  }

  /// Of the first message that was not answered to its end; 0 if there is none.
  int code() const { return code_; }

 private:
  void answer(const std::stop_token& stop) {
    const auto prompt = session_.text().encode_chat(messages_);
    const Answer answer = generate(
        context_, engine_, options_.generate.request(prompt),
        [&](std::string_view piece) {
          if (!options_.json) print(piece);
        },
        stop);
    const bool cancelled = answer.finish == FinishReason::cancelled;
    const bool ends = context_.stop.stop_requested();
    if (ends && answer.ids.empty()) throw Interrupted();
    if (options_.json) {
      nlohmann::ordered_json turn = turn_json(answer);
      if (!start_told_) {
        turn["ttft_s"] = answer.first_token_s;
        turn["load"] = to_json(session_.wait());
        turn["kv"] = to_json(session_.kv_use());
      }
      print_json(turn);
      start_told_ = true;
    } else {
      print("\n");
    }
    if (ends) throw Interrupted();
    if (cancelled) {
      say(context_, "(stopped)");
      if (code_ == 0) code_ = kCtrlC;
    }
    if (cancelled && answer.text.empty()) {
      messages_.pop_back();  // templates refuse two messages in a row
    } else {
      messages_.push_back({"assistant", answer.text});
    }
    if (answer.finish == FinishReason::context_full) say(context_, "(the context is full: /reset starts anew)");
  }

  Context& context_;
  const ChatOptions& options_;
  Session& session_;
  Engine engine_;
  std::vector<ChatMessage> messages_;
  bool load_told_ = false;   // to the person
  bool start_told_ = false;  // in the first turn that has an answer
  int code_ = 0;
};

std::string_view trimmed(std::string_view line) {
  constexpr std::string_view kBlanks = " \t\r";
  const size_t begin = line.find_first_not_of(kBlanks);
  if (begin == line.npos) return "";
  return line.substr(begin, line.find_last_not_of(kBlanks) - begin + 1);
}

/// Whether a line begins with "/word", which a path does not.
bool is_command(std::string_view line) {
  if (!line.starts_with('/')) return false;
  const std::string_view word = line.substr(1, line.find_first_of(" \t") - 1);
  return !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) { return std::isalpha(c) != 0; });
}

/// Takes lines until the last, or /quit.
void converse(Context& context, Chat& chat, bool json, bool by_hand) {
  const bool prompts = !json && by_hand;
  if (prompts)
    say(context,
        "Write a message and press Enter. /reset forgets the conversation, /quit or Ctrl-D ends it. Ctrl-C stops an "
        "answer; at the prompt it ends the conversation, too.");
  StandardInput input;
  for (std::string line;;) {
    if (prompts) print("> ");
    exit_at_once(true);
    if (context.stop.stop_requested()) throw Interrupted();  // it came between two answers
    if (!input.read_line(line)) break;
    const std::string_view word = trimmed(line);
    if (word == "/quit" || word == "/exit") return;
    if (word == "/reset") {
      chat.reset();
      if (json) print_json({{"reset", true}});
    } else if (word.empty()) {
      if (json) chat.refuse(ErrorKind::bad_input, "this message is empty");
    } else if (is_command(word)) {
      chat.refuse(ErrorKind::bad_input, str("there is no command '", word.substr(0, word.find_first_of(" \t")),
                                            "'; there are /reset, /quit and /exit"));
    } else {
      const Turn turn;
      exit_at_once(false);
      chat.take(line, turn.token());
    }
  }
  if (prompts) print("\n");
}

int chat(Context& context, const ChatOptions& options) {
  context.json = options.json;
  refuse_launched("chat");
  require_utf8(options.system, "--system");
  Session& session = Session::make(context, options.session);
  const ModelText& text = session.text();
  if (text.chat == nullptr) throw Error(ErrorKind::unsupported, "chat: the model has no chat template; use run --raw");
  EngineOptions engine_options;
  engine_options.max_context = session.max_context();
  engine_options.prefill_alone = session.pass_tokens();
  engine_options.stop_ids = text.stop_ids;
  engine_options.share_prefixes = true;  // a turn's prompt begins with the one before
  ChatOptions settled = options;
  settled.generate.settle_prefill(context, session);
  Chat chat(context, settled, session, engine_options);
  const bool by_hand = ::isatty(STDIN_FILENO) == 1;
  if (by_hand) session.wait();  // else the load's bar would write over the prompt and what is typed
  converse(context, chat, options.json, by_hand);
  return by_hand ? 0 : chat.code();  // who types has seen it
}

}  // namespace

void add_chat(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<ChatOptions>();
  options->generate.max_new_tokens = 1024;
  CLI::App* command = app.add_subcommand("chat", "Talk with the model in the terminal, through its chat template");
  options->session.add_to(*command);
  options->generate.add_to(*command);
  command->add_option("--system", options->system, "System message");
  command->add_flag("--json", options->json,
                    "One JSON object on stdout for each line on stdin, no prompt; a blank line is an error, /reset is "
                    "{\"reset\": true}");
  command->footer("Example:\n  firstlight chat smollm2-ranks --system \"Answer in one sentence.\"");
  command->callback([options, &chosen] { chosen = [options](Context& context) { return chat(context, *options); }; });
}

}  // namespace firstlight::cli
