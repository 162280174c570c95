// SPDX-License-Identifier: Apache-2.0
// One answer, streamed: what run and chat share.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "firstlight/cli/session.h"
#include "firstlight/engine/engine.h"

namespace CLI {
class App;
}

namespace firstlight::cli {

struct GenerateOptions {
  int max_new_tokens = 256;
  bool greedy = false;
  bool ignore_eos = false;
  SamplingOptions sampling{
      .temperature = 0.7, .top_k = 0, .top_p = 0.95, .min_p = 0, .repetition_penalty = 1, .seed = 0};
  std::vector<std::string> stop;
  std::string prefill = "strict";  ///< or fast

  void add_to(CLI::App& command);
  Request request(std::vector<int> prompt) const;
  /// Strict instead of fast prefill where the session knows none, which is said, and why.
  void settle_prefill(const Context& context, const Session& session);
};

struct Answer {
  std::string text;
  std::vector<int> ids;  ///< generated only; the stop token that ended the answer is among them, as its text is not
  size_t n_prompt = 0;
  size_t n_shared = 0;            ///< of these, whose keys and values were there before
  bool fast_prefill = false;      ///< Request::fast_prefill, and none of the prompt was there before
  double first_token_s = 0;       ///< since exec
  double prompt_seconds = 0;      ///< prompt given → first token
  double waited_seconds = 0;      ///< of these: computing stood still because weights had not arrived
  double generation_seconds = 0;  ///< first token → last
  FinishReason finish = FinishReason::running;
  double prompt_tokens_per_s() const;  ///< of the tokens that were computed, and the time that was not waiting
  double tokens_per_s() const;         ///< 0 if only one token was made
  std::string_view prefill() const { return fast_prefill ? "fast" : "strict"; }
};

/// Runs the engine until the request is finished; `on_text` gets the text piece by piece. Asked to stop, by the context
/// or by `turn`, it gives what there is, with FinishReason::cancelled. A prefix is submit()'s; `on_first` is called
/// once the first token is out.
Answer generate(Context& context, Engine& engine, Request request, const std::function<void(std::string_view)>& on_text,
                const std::stop_token& turn = {}, Prefix prefix = {}, const std::function<void()>& on_first = {});

}  // namespace firstlight::cli
