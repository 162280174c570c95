// SPDX-License-Identifier: Apache-2.0
// Requests in, tokens out: continuous batching over paged KV.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/engine/prefix.h"
#include "firstlight/engine/sampler.h"
#include "firstlight/model/runner.h"
#include "firstlight/text/tokenizer.h"

namespace firstlight {

enum class FinishReason { running, stop_token, stop_string, length, context_full, cancelled, error };
std::string_view to_string(FinishReason reason) noexcept;

struct Request {
  std::vector<int> prompt;  ///< not empty
  SamplingOptions sampling;
  int max_new_tokens = 128;  ///< at least 1
  int n_samples = 1;         ///< answers to the one prompt, at least 1; sample i draws with sampling.seed + i
  /// Over codes: SequenceChunk::fresh_exactly, where none of the prompt's keys and values were there already. What
  /// other requests find of it later was computed so.
  bool fast_prefill = false;
  bool ignore_eos = false;    ///< the engine's stop ids are ordinary tokens; stop_ids below still end the text
  std::vector<int> stop_ids;  ///< beside the engine's
  std::vector<std::string>
      stop_strings;  ///< the text ends before the first of them to be complete; each 1 to 4096 bytes
  /// If set, is given the prompt's full pages once, when all of the prompt is computed and before its first token is
  /// delivered (the first sample's): a table that holds them, and the exact pages that go with them, as long as it
  /// lives. Nobody writes to them any more. It is to be destroyed on the engine's thread.
  std::function<void(Prefix)> on_prompt;
};

/// One token's worth of news about a request, on the engine's thread.
struct TokenEvent {
  uint64_t request = 0;
  std::optional<int> id;  ///< the token, if one was made (a stop token is reported, too, with text "")
  std::string text;       ///< text that became certain (held back while it may be the beginning of a stop string)
  FinishReason finish = FinishReason::running;
  int64_t n_shared = 0;  ///< prompt tokens whose keys and values were there already, when the request was last admitted
  std::string error;     ///< for FinishReason::error
  ErrorKind error_kind = ErrorKind::bug;
};
using TokenFn = std::function<void(const TokenEvent&)>;

struct EngineOptions {
  int64_t max_context = 0;    ///< tokens a sequence may have; 0: the model's
  int prefill_chunk = 512;    ///< prompt tokens in one step, beside a token of each sequence that decodes
  int prefill_alone = 0;      ///< the same where none decodes and so none waits; 0: prefill_chunk
  int max_batch = 256;        ///< sequences in one step
  std::vector<int> stop_ids;  ///< the model's
  /// Full pages of prompts stay known until their memory is needed, and a request that begins with their tokens takes
  /// them from there. What it is given does not change, beyond the rounding of differently shaped products: on the CPU
  /// not at all where it runs alone.
  bool share_prefixes = false;
};

/// One thread drives it: submit(), step(), cancel() from that thread only. The callbacks run on it, inside step(), and
/// may call submit() and cancel(), not step().
class Engine {
 public:
  /// `tokenizer` may be null: then there is no text and no stop string. Throws Error{bad_input} for options that make
  /// no sense, such as a context beyond the model's.
  Engine(Runner& runner, const Tokenizer* tokenizer, EngineOptions options);
  ~Engine();

  /// Queues a request; its events come from step(). Sample i has number i counted from the one returned, and ends and
  /// is cancelled by itself; the samples share the prompt's pages and copy the last one when they write to it. Throws
  /// Error{bad_input} for an id out of range, Error{out_of_memory} for a prompt that can never fit.
  uint64_t submit(Request request, TokenFn on_token) { return submit(std::move(request), std::move(on_token), {}); }
  /// With a prefix the prompt goes on from its reusable_tokens(). Only while nothing runs or waits (Error{bug}).
  uint64_t submit(Request request, TokenFn on_token, Prefix prefix);
  void cancel(uint64_t request);
  /// One forward pass over what is runnable: one token for each decoding sequence, then prompt chunks up to the budget.
  /// A request that cannot get pages waits; if running ones run dry, the youngest is put back to the queue and
  /// recomputed later. False if nothing is left to do.
  /// If the forward pass throws, every request ends with FinishReason::error and the exception goes on to the caller.
  /// What a callback throws goes on to the caller, too; the engine stays usable, and tokens not yet delivered are
  /// computed again.
  bool step();
  int n_running() const;
  int n_waiting() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight
