// SPDX-License-Identifier: Apache-2.0
// firstlight score: log-probabilities of given tokens, and perplexity.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/launch.h"
#include "firstlight/cli/session.h"
#include "firstlight/cli/token_ids.h"
#include "firstlight/engine/sampler.h"

namespace firstlight::cli {

namespace {

struct ScoreOptions {
  SessionOptions session;
  std::string ids_file, text_file;
  int64_t window = 0;
  int top = 0;
  bool json = false, greedy = false;
};

struct TopToken {
  int id;
  double logprob;
};

struct Score {
  std::vector<std::optional<double>> logprobs;  // [n]
  std::vector<std::vector<TopToken>> top;       // [n][top]
};

/// A log-probability; throws if it is none, which no JSON could say.
double finite(double x) {
  if (!std::isfinite(x)) throw_no_numbers();
  return x;
}

/// ln Σ exp(logits), in double.
double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - top);
  return finite(top + std::log(sum));
}

std::vector<TopToken> likeliest(std::span<const float> logits, double norm, int n) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto first = [&](int a, int b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto end = order.begin() + std::min<std::ptrdiff_t>(n, static_cast<std::ptrdiff_t>(order.size()));
  std::partial_sort(order.begin(), end, order.end(), first);
  std::vector<TopToken> top;
  for (auto it = order.begin(); it != end; ++it)
    top.push_back({*it, finite(static_cast<double>(logits[static_cast<size_t>(*it)]) - norm)});
  return top;
}

/// One window: ids[begin, end) as a sequence of its own, `chunk` tokens a step so that the logits stay small. `scored`
/// hears how many of them are done.
void score_window(Context& context, Runner& runner, std::span<const int> ids, int n_top, int chunk, Score& score,
                  const std::function<void(size_t)>& scored) {
  PageTable pages(runner.pool(), runner.exact_pool());
  if (!pages.try_reserve(static_cast<int64_t>(ids.size()))) {
    throw Error(ErrorKind::out_of_memory,
                str("a window of ", ids.size(), " tokens does not fit the KV cache of ",
                    runner.pool().n_pages() * kPageTokens, " tokens; use a smaller --window"));
  }
  const auto vocab = static_cast<size_t>(runner.config().vocab_size);
  std::vector<float> logits;
  score.logprobs.emplace_back(std::nullopt);
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(chunk)) {
    if (context.stop.stop_requested()) throw Interrupted();
    const auto tokens = ids.subspan(begin, std::min(static_cast<size_t>(chunk), ids.size() - begin));
    const SequenceChunk step{tokens, static_cast<int64_t>(begin), &pages, static_cast<int>(tokens.size())};
    runner.forward({&step, 1}, logits);
    pages.release_exact(static_cast<int64_t>(begin + tokens.size()));
    for (size_t i = 0; i < tokens.size(); ++i) {
      const std::span<const float> row(logits.data() + i * vocab, vocab);
      const double norm = log_sum_exp(row);
      const size_t next = begin + i + 1;
      if (next < ids.size())
        score.logprobs.emplace_back(finite(static_cast<double>(row[static_cast<size_t>(ids[next])]) - norm));
      if (n_top > 0) score.top.push_back(likeliest(row, norm, n_top));
    }
    scored(begin + tokens.size());
  }
}

std::string text_to_score(const ScoreOptions& options) {
  if (!options.ids_file.empty()) return "";
  const bool piped = options.text_file == "-";
  std::string text = piped ? read_standard_input() : read_text(options.text_file);
  require_utf8(text, piped ? "standard input" : str("'", options.text_file, "'"));
  return text;
}

int run_score(Context& context, ScoreOptions options) {
  context.json = options.json;
  if (options.greedy)
    throw Error(ErrorKind::bad_input,
                "score --greedy: score gives the likelihood of a given text and chooses no token: "
                "leave --greedy out");
  if (options.top > 0 && !options.json)
    throw Error(ErrorKind::bad_input, "score --top: the likeliest tokens are given with --json alone: add it");
  if (options.ids_file.empty() == options.text_file.empty())
    throw Error(ErrorKind::bad_input, "score: give one of --ids FILE and --text FILE");
  join_launched(context, options.session);
  constexpr int kChunk = 128;  // 128 rows of logits of a 128,256-word vocabulary: 66 MB
  options.session.logit_rows = kChunk;
  if (follows(context)) return follow(context, options.session, /*with_runner=*/true);
  const std::string text = text_to_score(options);
  Session& session = Session::make(context, options.session, options.ids_file.empty());
  const std::vector<int> ids = options.ids_file.empty() ? session.text().tokenizer->encode(text)
                                                        : read_ids(options.ids_file, session.config().vocab_size);
  if (ids.empty()) throw Error(ErrorKind::bad_input, "score: there is no token to score");
  int64_t window = options.window > 0 ? options.window : session.max_context();
  if (window > session.max_context())
    throw Error(ErrorKind::bad_input, str("--window ", window, ": the context is ", session.max_context(), " tokens"));
  if (ids.size() < 2 || window < 2) {
    throw Error(ErrorKind::bad_input,
                "score: every window has one token, so none has a token before it: the text is too short, or --window "
                "is");
  }
  Score score;
  ProgressBar bar(context);
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(window)) {
    const size_t n = std::min(static_cast<size_t>(window), ids.size() - begin);
    score_window(context, session.runner(), std::span(ids).subspan(begin, n), options.top, kChunk, score,
                 [&](size_t k) { bar.update("scoring", (begin + k) * sizeof(int), ids.size() * sizeof(int)); });
  }
  bar.clear();
  const LoadReport load = session.wait();
  double sum = 0;
  size_t counted = 0;
  for (const auto& logprob : score.logprobs) {
    if (logprob) sum -= *logprob, ++counted;
  }
  const double mean = sum / static_cast<double>(counted);
  if (options.json) {
    nlohmann::ordered_json logprobs = nlohmann::ordered_json::array(), top = nlohmann::ordered_json::array();
    for (const auto& logprob : score.logprobs)
      logprobs.push_back(logprob ? nlohmann::ordered_json(*logprob) : nlohmann::ordered_json());
    for (const auto& row : score.top) {
      nlohmann::ordered_json list = nlohmann::ordered_json::array();
      for (const TopToken& token : row) list.push_back({{"id", token.id}, {"logprob", token.logprob}});
      top.push_back(std::move(list));
    }
    print_json({{"n_tokens", ids.size()},
                {"nll_mean", mean},
                {"perplexity", std::exp(mean)},
                {"logprobs", std::move(logprobs)},
                {"top", std::move(top)},
                {"kv", to_json(session.kv_use())}});
    return 0;
  }
  std::array<char, 160> line{};
  std::snprintf(line.data(), line.size(),
                "%zu tokens in windows of %lld: mean negative log-likelihood %.5f, perplexity %.4f\n", ids.size(),
                static_cast<long long>(window), mean, std::exp(mean));
  print(line.data());
  say(context, describe(load));
  say(context, describe(session.kv_use()));
  return 0;
}

}  // namespace

void add_score(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<ScoreOptions>();
  CLI::App* command = app.add_subcommand("score", "Log-probabilities and perplexity of a text");
  options->session.add_to(*command);
  CLI::Option* ids = command->add_option("--ids", options->ids_file,
                                         "File with a JSON list of token ids, scored as they are; -: standard input");
  command->add_option("--text", options->text_file, "Text file, tokenized without a chat template; -: standard input")
      ->excludes(ids);
  command
      ->add_option("--window", options->window, "Score independent windows of this many tokens (default: the context)")
      ->check(whole_number(1, int64_t{1} << 40));
  command->add_option("--top", options->top, "Give the K likeliest tokens after each position (with --json)")
      ->check(whole_number(0, 1 << 30));
  command->add_flag("--greedy", options->greedy)->group("");  // taken to be refused with a reason
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer("Example:\n  firstlight score smollm2-ranks --text novel.txt --window 2048");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_score(context, *options); }; });
}

}  // namespace firstlight::cli
