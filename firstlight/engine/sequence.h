// SPDX-License-Identifier: Apache-2.0
// One request on its way through the engine: its tokens, its pages, its text so far.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "firstlight/engine/engine.h"
#include "firstlight/engine/stop_strings.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/text/tokenizer.h"

namespace firstlight {

class Sequence {
 public:
  Sequence(uint64_t id, Request request, TokenFn on_token, const Tokenizer* tokenizer);

  uint64_t id() const noexcept { return id_; }
  const Request& request() const noexcept { return request_; }
  const std::vector<int>& tokens() const noexcept { return tokens_; }  ///< prompt, then what was generated
  int64_t n_tokens() const noexcept { return static_cast<int64_t>(tokens_.size()); }
  int64_t n_prompt() const noexcept { return static_cast<int64_t>(n_prompt_); }
  uint64_t n_generated() const noexcept { return tokens_.size() - n_prompt_; }
  bool is_decoding() const noexcept { return n_cached + 1 == n_tokens(); }

  /// Adds a token. `stop_ids`: the engine's; `max_tokens`: what the sequence may hold. The event that results, its
  /// finish set if the sequence ends with it.
  TokenEvent accept(int token, const std::vector<int>& stop_ids, int64_t max_tokens);
  /// The event of an end without a token.
  TokenEvent end(FinishReason reason, std::string error, ErrorKind kind = ErrorKind::bug);
  void deliver(const TokenEvent& event) const;
  /// Gives back the exact pages that nobody needs any more once n_cached tokens are there.
  void release_exact();
  /// Calls Request::on_prompt, once the prompt is there. Behind release_exact(): who holds the prompt must not hold
  /// exact pages that others need.
  void hand_out_prompt();

  std::unique_ptr<PageTable> pages;      ///< null while waiting
  int64_t n_cached = 0;                  ///< tokens whose keys and values lie in the pages
  int64_t n_shared = 0;                  ///< of these, that were there when it was admitted
  int64_t n_known = 0;                   ///< pages that the prefix cache was told of
  std::weak_ptr<Sequence> first_sample;  ///< of the same request, if this is another one
  bool prompt_is_out = false;            ///< Request::on_prompt was called, or is another sample's
  bool cancelled = false;
  bool finished = false;

 private:
  bool owes_prompt() const noexcept { return request_.on_prompt && !prompt_is_out; }
  bool is_stop(int token, const std::vector<int>& stop_ids) const;
  std::string rest_of_text();

  uint64_t id_;
  Request request_;
  TokenFn on_token_;
  size_t n_prompt_;
  std::vector<int> tokens_;
  std::optional<Detokenizer> detokenizer_;
  StopStrings stops_;
};

}  // namespace firstlight
