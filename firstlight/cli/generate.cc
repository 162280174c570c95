// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/generate.h"

#include <CLI/CLI.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/timeline.h"
#include "firstlight/cli/arguments.h"

namespace firstlight::cli {

void GenerateOptions::add_to(CLI::App& command) {
  command.add_option("-n,--max-tokens", max_new_tokens, "Tokens to generate at most")
      ->check(whole_number(1, 1 << 30))
      ->capture_default_str();
  command.add_flag("--greedy", greedy, "Always the likeliest token");
  command.add_flag("--ignore-eos", ignore_eos, "Go on after the model's stop tokens");
  command.add_option("--temperature", sampling.temperature, "0 is greedy")
      ->check(number(0.0, 100.0))
      ->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "Sample from the K likeliest (0: off)")
      ->check(whole_number(0, 1 << 30))
      ->capture_default_str();
  command.add_option("--top-p", sampling.top_p, "Sample from the likeliest that make up P (1: off)")
      ->check(number(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--min-p", sampling.min_p, "Drop tokens less likely than this share of the likeliest (0: off)")
      ->check(number(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--repetition-penalty", sampling.repetition_penalty, "1 is off")
      ->check(number(0.01, 100.0))
      ->capture_default_str();
  command.add_option("--seed", sampling.seed, "The same seed gives the same text")
      ->check(seed_number())
      ->capture_default_str();
  command
      .add_option("--prefill", prefill,
                  "Over codes (--kv tq4, …): strict: a prompt's token reads codes where a generated one would, so that "
                  "results do not depend on how a prompt is cut or on prefixes found; fast: tokens that are computed "
                  "together read one another in bf16")
      ->check(one_of({"strict", "fast"}))
      ->capture_default_str();
  command.add_option("--stop", stop, "End before this text (may be given several times)")->allow_extra_args(false);
}

void GenerateOptions::settle_prefill(const Context& context, const Session& session) {
  if (prefill != "fast") return;
  const KvKind kind = session.kv_use().kind;
  const auto [key_bits, value_bits] = kv_bits(kind);
  const auto is_plain = [](int bits) { return bits != 4 && bits != 8; };
  std::string why;
  if (!is_compressed(kind)) {
    why = str(to_string(kind), " pages hold no codes");
  } else if (session.device().kind == Device::Kind::cuda &&
             (is_plain(key_bits) || is_plain(value_bits) || session.config().head_dim > 128)) {
    why = str("a GPU knows no other over ", to_string(kind), " and heads of ", session.config().head_dim);
  }
  if (why.empty()) return;
  prefill = "strict";
  say(context, str("prefill: strict, because ", why));
}

Request GenerateOptions::request(std::vector<int> prompt) const {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling = sampling;
  if (greedy)
    request.sampling = {.temperature = 0,
                        .top_k = 0,
                        .top_p = 1,
                        .min_p = 0,
                        .repetition_penalty = sampling.repetition_penalty,
                        .seed = sampling.seed};
  request.max_new_tokens = max_new_tokens;
  request.ignore_eos = ignore_eos;
  request.stop_strings = stop;
  request.fast_prefill = prefill == "fast";
  return request;
}

double Answer::prompt_tokens_per_s() const {
  const double computing = prompt_seconds - waited_seconds;
  return computing > 0 ? static_cast<double>(n_prompt - n_shared) / computing : 0;
}

double Answer::tokens_per_s() const {
  return ids.size() > 1 && generation_seconds > 0 ? static_cast<double>(ids.size() - 1) / generation_seconds : 0;
}

Answer generate(Context& context, Engine& engine, Request request, const std::function<void(std::string_view)>& on_text,
                const std::stop_token& turn, Prefix prefix, const std::function<void()>& on_first) {
  Answer answer;
  answer.n_prompt = request.prompt.size();
  const bool wants_fast = request.fast_prefill;
  std::string error;
  ErrorKind error_kind = ErrorKind::bug;
  const double start = seconds_since_exec();
  const auto on_token = [&](const TokenEvent& event) {
    if (event.id) {
      if (answer.first_token_s == 0) {
        answer.first_token_s = seconds_since_exec();
        answer.prompt_seconds = answer.first_token_s - start;
      }
      answer.generation_seconds = seconds_since_exec() - answer.first_token_s;
    }
    if (event.id) answer.ids.push_back(*event.id);
    if (!event.text.empty()) {
      answer.text += event.text;
      on_text(event.text);
    }
    answer.finish = event.finish;
    answer.n_shared = static_cast<size_t>(event.n_shared);
    error = event.error;
    error_kind = event.error_kind;
    if (event.id && answer.ids.size() == 1 && on_first) on_first();
  };
  const uint64_t id = engine.submit(std::move(request), on_token, std::move(prefix));
  while (answer.finish == FinishReason::running && engine.step()) {
    const bool stop = context.stop.stop_requested() || turn.stop_requested();
    if (stop && answer.finish == FinishReason::running) {
      engine.cancel(id);
      answer.finish = FinishReason::cancelled;
    }
  }
  if (answer.finish == FinishReason::error) throw Error(error_kind, error);
  answer.fast_prefill = wants_fast && answer.n_shared == 0;
  return answer;
}

}  // namespace firstlight::cli
