// SPDX-License-Identifier: Apache-2.0
#include "firstlight/engine/sequence.h"

#include <algorithm>
#include <utility>

namespace firstlight {

std::string_view to_string(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::running:
      return "running";
    case FinishReason::stop_token:
      return "stop_token";
    case FinishReason::stop_string:
      return "stop_string";
    case FinishReason::length:
      return "length";
    case FinishReason::context_full:
      return "context_full";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "error";
}

Sequence::Sequence(uint64_t id, Request request, TokenFn on_token, const Tokenizer* tokenizer)
    : id_(id),
      request_(std::move(request)),
      on_token_(std::move(on_token)),
      n_prompt_(request_.prompt.size()),
      tokens_(std::move(request_.prompt)),
      stops_(std::move(request_.stop_strings)) {
  if (tokenizer) detokenizer_.emplace(*tokenizer);
}

bool Sequence::is_stop(int token, const std::vector<int>& stop_ids) const {
  const auto in = [&](const std::vector<int>& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  return in(request_.stop_ids) || (!request_.ignore_eos && in(stop_ids));
}

// An unfinished character may still complete a stop string; only what is behind that is certain.
std::string Sequence::rest_of_text() {
  std::string text = detokenizer_ ? stops_.push(detokenizer_->finish()) : std::string();
  if (!stops_.found()) text += stops_.finish();
  return text;
}

TokenEvent Sequence::accept(int token, const std::vector<int>& stop_ids, int64_t max_tokens) {
  tokens_.push_back(token);
  TokenEvent event{id_, token, "", FinishReason::running, n_shared, ""};
  if (is_stop(token, stop_ids)) {
    event.finish = FinishReason::stop_token;
  } else {
    if (detokenizer_) event.text = stops_.push(detokenizer_->push(token));
    if (stops_.found())
      event.finish = FinishReason::stop_string;
    else if (n_generated() >= static_cast<uint64_t>(request_.max_new_tokens))
      event.finish = FinishReason::length;
    else if (n_tokens() >= max_tokens)
      event.finish = FinishReason::context_full;
  }
  if (event.finish != FinishReason::running) {
    const bool was_found = stops_.found();
    event.text += rest_of_text();
    if (stops_.found() && !was_found) event.finish = FinishReason::stop_string;
    finished = true;
  }
  return event;
}

TokenEvent Sequence::end(FinishReason reason, std::string error, ErrorKind kind) {
  finished = true;
  return {id_, std::nullopt, rest_of_text(), reason, n_shared, std::move(error), kind};
}

void Sequence::deliver(const TokenEvent& event) const {
  if (on_token_) on_token_(event);
}

/// The samples to come begin kMatrixRows tokens before the prompt's end, and who is owed the prompt gets a page before
/// its last full one; a page more is what exact_pages_for() has to spare.
void Sequence::release_exact() {
  int64_t begin = n_cached;
  if (request_.n_samples > 1 && begin < n_prompt() - kMatrixRows + kPageTokens)
    begin = std::min(begin, n_prompt() - kMatrixRows);
  if (owes_prompt()) begin = std::min(begin, (n_prompt() / kPageTokens - 1) * kPageTokens);
  pages->release_exact(std::max<int64_t>(0, begin));
}

void Sequence::hand_out_prompt() {
  if (!owes_prompt() || n_cached < n_prompt()) return;
  prompt_is_out = true;
  const int64_t n = n_prompt() / kPageTokens * kPageTokens;
  request_.on_prompt({std::make_unique<PageTable>(pages->fork(n)), n});
  release_exact();
}

}  // namespace firstlight
