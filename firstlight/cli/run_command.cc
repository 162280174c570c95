// SPDX-License-Identifier: Apache-2.0
// firstlight run: a prompt in, an answer out, and the time line from exec to the first token.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/generate.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/cli/launch.h"
#include "firstlight/cli/prefix.h"
#include "firstlight/cli/token_ids.h"

namespace firstlight::cli {

namespace {

struct RunOptions {
  SessionOptions session;
  GenerateOptions generate;
  PrefixOptions prefix;
  std::string prompt, prompt_file, ids_file, system;
  bool prompt_given = false;
  bool raw = false;
  bool json = false;
};

std::string prompt_text(const RunOptions& options) {
  if (!options.ids_file.empty()) return "";
  require_utf8(options.system, "--system");
  const bool piped = !options.prompt_given && options.prompt_file.empty() && ::isatty(STDIN_FILENO) == 0;
  if (piped || options.prompt_file == "-") {
    std::string text = read_standard_input();
    require_utf8(text, "standard input");
    if (text.ends_with('\n')) text.pop_back();  // as echo ends it
    if (!text.empty()) return text;
  } else if (!options.prompt_file.empty()) {
    std::string text = read_text(options.prompt_file);
    require_utf8(text, str("'", options.prompt_file, "'"));
    return text;
  }
  if (options.prompt.empty())
    throw Error(ErrorKind::bad_input,
                "run: the prompt is empty: give one as TEXT, with --prompt-file FILE, --ids FILE or from a pipe");
  require_utf8(options.prompt, "the prompt");
  return options.prompt;
}

std::vector<int> encode_prompt(Context& context, const RunOptions& options, const std::string& prompt,
                               const ModelText& text, int vocab_size) {
  const Timeline::Scope scope(&context.timeline, "encode prompt");
  if (!options.ids_file.empty()) return read_ids(options.ids_file, vocab_size);
  if (options.raw) return text.tokenizer->encode(prompt);
  if (text.chat == nullptr) say(context, "chat template: the model has none, so the prompt is taken as it is");
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", prompt});
  return text.encode_chat(messages);
}

std::vector<std::string> names_of(const std::vector<Device>& devices) {
  std::vector<std::string> names;
  for (const Device device : devices) names.push_back(to_string(device));
  return names;
}

/// `failure`: of what was still to be done behind the answer, or null.
void report(Context& context, const RunOptions& options, Session& session, const LoadReport& load, const Answer& answer,
            const PrefixUse& prefix, const Error* failure) {
  if (options.json) {
    nlohmann::ordered_json all = {{"text", answer.text},
                                  {"ids", answer.ids},
                                  {"n_prompt", answer.n_prompt},
                                  {"prefill", answer.prefill()},
                                  {"finish", to_string(answer.finish)},
                                  {"ttft_s", answer.first_token_s},
                                  {"phases", to_json(context.timeline.phases())},
                                  {"load", to_json(load)},
                                  {"waited_for_weights_s", answer.waited_seconds},
                                  {"prompt_tokens_per_s", answer.prompt_tokens_per_s()},
                                  {"tokens_per_s", answer.tokens_per_s()},
                                  {"tp", session.tp()},
                                  {"device", to_string(session.device())},
                                  {"devices", names_of(session.devices())},
                                  {"sums", session.runner().comm_path()},
                                  {"ops", session.runner().ops_name()},
                                  {"threads", session.n_threads()},
                                  {"max_context", session.max_context()},
                                  {"kv", to_json(session.kv_use())},
                                  {"prefix", to_json(prefix, load)}};
    if (failure) all["error"] = {{"kind", to_string(failure->kind())}, {"message", failure->what()}};
    print_json(all);
    return;
  }
  say(context, "");
  say(context, draw_timeline(context.timeline.phases(), answer.first_token_s));
  say(context, str("first token ", human_seconds(answer.first_token_s), " after exec; ", describe(load)));
  std::array<char, 192> rates{};
  std::snprintf(rates.data(), rates.size(),
                "prompt: %zu tokens, %.0f tokens/s (%.0f ms of waiting for weights left out); generated: %zu tokens, "
                "%.1f tokens/s (%s)",
                answer.n_prompt - answer.n_shared, answer.prompt_tokens_per_s(), 1e3 * answer.waited_seconds,
                answer.ids.size(), answer.tokens_per_s(), std::string(to_string(answer.finish)).c_str());
  say(context, rates.data());
  const std::string sums = session.tp() == 1 ? "" : str(", sums by ", session.runner().comm_path());
  say(context, str("computed by ", session.runner().ops_name(), ", tp ", session.tp(), sums));
  say(context, describe(session.kv_use()));
  if (is_compressed(session.kv_use().kind)) {
    const bool goes_on = options.generate.prefill == "fast" && answer.n_shared > 0;
    say(context, str("prefill: ", answer.prefill(), goes_on ? ", as the prompt goes on from a prefix" : ""));
  }
  if (const std::string text = describe(prefix, load); !text.empty()) say(context, text);
}

int run(Context& context, const RunOptions& options) {
  context.json = options.json;
  SessionOptions session_options = options.session;
  if (!options.prefix.save.empty() || !options.prefix.restore.empty()) refuse_launched("run with a prefix file");
  if (!options.prefix.save.empty() && options.generate.prefill == "fast")
    throw Error(ErrorKind::bad_input, "run: --prefill fast: a prefix that is saved is computed by strict prefill");
  join_launched(context, session_options);
  if (follows(context)) return follow(context, session_options, /*with_runner=*/true);
  const std::string prompt = prompt_text(options);
  session_options.text_optional = !options.ids_file.empty();
  std::optional<PrefixRestore> restore;
  if (!options.prefix.restore.empty()) restore.emplace(context, session_options, options.prefix.restore);
  Session& session = Session::make(context, session_options);
  if (restore) restore->begin(session, session_options);
  ModelText& text = session.text();
  EngineOptions engine_options;
  engine_options.max_context = session.max_context();
  engine_options.prefill_alone = session.pass_tokens();
  engine_options.stop_ids = text.stop_ids;
  Engine engine(session.runner(), text.tokenizer.get(), engine_options);
  GenerateOptions generation = options.generate;
  generation.settle_prefill(context, session);
  Request request = generation.request(encode_prompt(context, options, prompt, text, session.config().vocab_size));
  PrefixUse prefix_use;
  Prefix prefix;
  std::optional<PrefixSave> save;
  if (static_cast<int64_t>(request.prompt.size()) < session.max_context()) {  // else the engine refuses it
    if (!options.prefix.save.empty()) save.emplace(context, session, options.prefix.save, request.prompt);
    if (restore) prefix = restore->finish(context, session, request.prompt, prefix_use);
  }
  if (save) request.on_prompt = [&save](Prefix whole) { save->take(std::move(whole)); };
  const double prompt_start = seconds_since_exec();
  const double waited_before = session.load().weights()[0].ready->waited_seconds();
  bool ends_with_newline = true;
  Answer answer = generate(
      context, engine, std::move(request),
      [&](std::string_view piece) {
        if (options.json) return;
        print(piece);
        ends_with_newline = piece.back() == '\n';
      },
      {}, std::move(prefix), save ? [&save] { save->begin(); } : std::function<void()>());
  const bool interrupted = answer.finish == FinishReason::cancelled;
  if (interrupted && answer.ids.empty()) throw Interrupted();
  if (!options.json && !ends_with_newline) print("\n");
  if (!options.json && !text.tokenizer) {  // ids in, ids out
    std::string ids;
    for (const int id : answer.ids) ids += str(ids.empty() ? "" : " ", id);
    print(ids + "\n");
  }
  context.timeline.add("prompt → first token", prompt_start, answer.first_token_s);
  std::optional<Error> failure;  // whatever becomes of the file, the answer is there
  try {
    if (save && !interrupted) prefix_use.saved = save->finish();
  } catch (const Error& e) {
    failure = e;
  }
  const LoadReport load = session.wait();
  answer.waited_seconds = session.load().weights()[0].ready->waited_seconds() - waited_before;
  report(context, options, session, load, answer, prefix_use, failure ? &*failure : nullptr);
  if (failure) {
    context.json = false;  // the report has it
    throw *failure;
  }
  return interrupted ? interrupted_exit_code() : 0;
}

}  // namespace

void add_run(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command =
      app.add_subcommand("run", "Generate an answer; ends with the time line from exec to the first token");
  options->session.add_to(*command);
  options->generate.add_to(*command);
  options->prefix.add_to(*command);
  CLI::Option* prompt =
      command->add_option("-p,--prompt,prompt", options->prompt, "The prompt; none: from standard input");
  CLI::Option* file = command->add_option("--prompt-file,--text", options->prompt_file,
                                          "Read the prompt from a file; -: from standard input");
  file->excludes(prompt);
  command
      ->add_option("--ids", options->ids_file,
                   "File with the prompt as a JSON list of token ids, taken as they are; -: standard input")
      ->excludes(prompt)
      ->excludes(file);
  command->add_option("--system", options->system, "System message");
  command->add_flag("--raw", options->raw, "Take the prompt as it is, without the chat template");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer("Example:\n  firstlight run smollm2-ranks \"Why is the sky blue?\" -n 100 --greedy");
  command->callback([options, prompt, &chosen] {
    options->prompt_given = prompt->count() > 0;
    chosen = [options](Context& context) { return run(context, *options); };
  });
}

}  // namespace firstlight::cli
