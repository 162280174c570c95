// SPDX-License-Identifier: Apache-2.0
// The scheduler. Running sequences stand in order of age; a sequence keeps its place in that order when it is put back.
#include "firstlight/engine/engine.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/engine/sequence.h"
#include "firstlight/kv/prefix_cache.h"

namespace firstlight {

struct Engine::Impl {
  using SequencePtr = std::shared_ptr<Sequence>;
  struct Work {
    SequencePtr sequence;
    int64_t n_tokens;
    bool wants_logits;
  };

  Impl(Runner& runner, const Tokenizer* tokenizer, EngineOptions options);
  void check(const Request& request) const;
  bool step();
  void finish_cancelled();
  void admit();
  bool find_pages(Sequence& sequence);
  bool try_reserve(Sequence& sequence);
  static void give_back_pages(Sequence& sequence);
  std::vector<Work> plan();
  bool reserve_or_preempt(const SequencePtr& sequence);
  void forward(const std::vector<Work>& work);
  void remember(Sequence& sequence);
  void deliver(const std::vector<Work>& work);
  void accept(const SequencePtr& sequence, size_t row);
  void fail_all(const std::string& message);
  void remove(const Sequence& sequence);

  Runner& runner;
  const Tokenizer* tokenizer;
  EngineOptions options;
  int64_t max_tokens;  // what one sequence may hold, by context and by pages
  size_t max_running;
  uint64_t next_id = 1;
  const PageTable::Copies copies{[this](int32_t from, int32_t to) { runner.copy_page(from, to); },
                                 [this](int32_t from, int32_t to) { runner.copy_exact_page(from, to); }};
  std::unique_ptr<PrefixCache> known;  // null: prefixes are not shared
  std::vector<SequencePtr> running;
  std::deque<SequencePtr> waiting;
  std::vector<Likeliest> likeliest;
  std::vector<int> drawn;  // from each wanted row of the last pass; −1: nothing could be
  bool in_step = false;
};

Engine::Impl::Impl(Runner& r, const Tokenizer* t, EngineOptions o) : runner(r), tokenizer(t), options(std::move(o)) {
  const int64_t model_context = runner.config().max_context;
  if (options.max_context < 0 || options.max_context > model_context) {
    throw Error(ErrorKind::bad_input,
                str("context of ", options.max_context, " tokens, the model's is ", model_context));
  }
  if (options.prefill_chunk < 1)
    throw Error(ErrorKind::bad_input, str("prefill chunk: ", options.prefill_chunk, ", expected at least 1"));
  if (options.prefill_alone == 0) options.prefill_alone = options.prefill_chunk;
  if (options.prefill_alone < options.prefill_chunk)
    throw Error(ErrorKind::bad_input, str("prefill alone: ", options.prefill_alone, " tokens, fewer than the ",
                                          options.prefill_chunk, " beside others"));
  if (options.max_batch < 1)
    throw Error(ErrorKind::bad_input, str("batch: ", options.max_batch, " sequences, expected at least 1"));
  const int64_t context = options.max_context == 0 ? model_context : options.max_context;
  max_tokens = std::min(context, runner.pool().n_pages() * kPageTokens);
  if (options.share_prefixes) known = std::make_unique<PrefixCache>(runner.pool(), runner.exact_pool());
  // Each running sequence gets at least one token a step.
  max_running = static_cast<size_t>(std::min(options.max_batch, options.prefill_chunk));
  if (const PagePool* exact = runner.exact_pool()) {  // as many as never run out of exact pages: nobody waits for one
    const int64_t pages_each = (max_tokens + kPageTokens - 1) / kPageTokens;
    const auto needed = [&](size_t n_sequences) {
      const auto n = static_cast<int64_t>(n_sequences);
      return exact_pages_for(n, options.prefill_alone, std::min(n * pages_each, runner.pool().n_pages()));
    };
    while (max_running > 0 && needed(max_running) > exact->n_pages()) --max_running;
    if (max_running == 0) {
      throw Error(ErrorKind::bad_input, str("prefill chunk: ", options.prefill_alone, " tokens beside ",
                                            exact->n_pages(), " exact KV pages; a smaller one would do"));
    }
  }
}

void Engine::Impl::check(const Request& request) const {
  const int vocab_size = runner.config().vocab_size;
  const auto check_ids = [&](const std::vector<int>& ids, std::string_view what) {
    for (const int id : ids) {
      if (id < 0 || id >= vocab_size)
        throw Error(ErrorKind::bad_input, str(what, ": token ", id, ", expected 0 to ", vocab_size - 1));
    }
  };
  if (request.prompt.empty()) throw Error(ErrorKind::bad_input, "the prompt is empty");
  check_ids(request.prompt, "prompt");
  check_ids(request.stop_ids, "stop tokens");
  validate(request.sampling);
  if (request.max_new_tokens < 1)
    throw Error(ErrorKind::bad_input, str("new tokens: ", request.max_new_tokens, ", expected at least 1"));
  if (request.n_samples < 1)
    throw Error(ErrorKind::bad_input, str("samples: ", request.n_samples, ", expected at least 1"));
  if (!request.stop_strings.empty() && !tokenizer)
    throw Error(ErrorKind::bad_input, "stop strings without a tokenizer");
  for (const std::string& stop : request.stop_strings) {
    if (stop.empty() || stop.size() > 4096)
      throw Error(ErrorKind::bad_input, str("a stop string of ", stop.size(), " bytes, expected 1 to 4096"));
    if ((static_cast<unsigned char>(stop[0]) & 0xc0u) == 0x80u)
      throw Error(ErrorKind::bad_input, "a stop string begins inside a character");
  }
  const int64_t n = static_cast<int64_t>(request.prompt.size());
  const int64_t context = options.max_context == 0 ? runner.config().max_context : options.max_context;
  if (n >= context)
    throw Error(ErrorKind::bad_input, str("a prompt of ", n, " tokens leaves no room in a context of ", context));
  if (n >= max_tokens) {
    throw Error(ErrorKind::out_of_memory, str("a prompt of ", n, " tokens needs ", n / kPageTokens + 1,
                                              " KV pages, there are ", runner.pool().n_pages()));
  }
}

void Engine::Impl::remove(const Sequence& sequence) {
  const auto same = [&](const SequencePtr& each) { return each.get() == &sequence; };
  std::erase_if(running, same);
  std::erase_if(waiting, same);
}

// A callback may cancel others: look anew after each.
void Engine::Impl::finish_cancelled() {
  const auto is_cancelled = [](const SequencePtr& each) { return each->cancelled; };
  while (true) {
    SequencePtr found;
    if (const auto at = std::find_if(running.begin(), running.end(), is_cancelled); at != running.end())
      found = *at;
    else if (const auto queued = std::find_if(waiting.begin(), waiting.end(), is_cancelled); queued != waiting.end())
      found = *queued;
    if (!found) return;
    remove(*found);
    found->pages.reset();
    found->deliver(found->end(FinishReason::cancelled, ""));
  }
}

void Engine::Impl::give_back_pages(Sequence& sequence) {
  sequence.pages.reset();
  sequence.n_cached = sequence.n_shared = sequence.n_known = 0;
}

bool Engine::Impl::try_reserve(Sequence& sequence) {
  return sequence.pages->try_reserve(sequence.n_tokens()) && sequence.pages->try_own(sequence.n_cached, copies);
}

/// Pages with what is known of its tokens. False: not yet, the request's first sample has to take in the prompt.
bool Engine::Impl::find_pages(Sequence& sequence) {
  const SequencePtr first = sequence.first_sample.lock();
  const int64_t n_shared = sequence.n_prompt() - kMatrixRows;
  if (first && first->pages && n_shared > 0) {
    if (first->n_cached < n_shared) return false;
    if (first->pages->has_exact_before(n_shared)) {
      sequence.pages = std::make_unique<PageTable>(first->pages->fork(n_shared));
      sequence.n_cached = sequence.n_shared = n_shared;
      return true;
    }
  }
  sequence.pages = std::make_unique<PageTable>(runner.pool(), runner.exact_pool());
  if (known) {
    const int64_t most = reusable_tokens(sequence.n_tokens(), sequence.n_prompt()) / kPageTokens;
    sequence.n_cached = sequence.n_shared = known->match(sequence.tokens(), most, *sequence.pages);
  }
  return true;
}

// In order of arrival: a large request is not overtaken, so it cannot starve.
void Engine::Impl::admit() {
  PagePool& pool = runner.pool();
  while (!waiting.empty() && running.size() < max_running) {
    const SequencePtr sequence = waiting.front();
    if (!sequence->pages && !find_pages(*sequence)) return;
    // Beside others, leave a page for each of them to grow into, or one of them would put it back at once.
    const int64_t needed = (sequence->n_tokens() - sequence->pages->capacity() + kPageTokens - 1) / kPageTokens;
    const bool crowded = !running.empty() && pool.n_free() - needed < static_cast<int64_t>(running.size());
    if (crowded || !try_reserve(*sequence)) {
      give_back_pages(*sequence);  // what waits holds nothing
      if (!running.empty()) return;
      waiting.pop_front();  // nobody here will ever free a page: someone else holds them
      sequence->deliver(sequence->end(FinishReason::error, str("needs ", needed, " KV pages, ", pool.n_free(), " of ",
                                                               pool.n_pages(), " are free")));
      continue;
    }
    waiting.pop_front();
    running.push_back(sequence);
  }
}

// False if the sequence itself was put back.
bool Engine::Impl::reserve_or_preempt(const SequencePtr& sequence) {
  while (!try_reserve(*sequence)) {
    const SequencePtr youngest = running.back();
    running.pop_back();
    give_back_pages(*youngest);
    waiting.push_front(youngest);
    if (youngest == sequence) return false;
  }
  return true;
}

/// Of n_left tokens of a prompt, at most `budget`. A few rows are another class of products and of attention on the
/// CPU: a chunk leaves none or kMatrixRows at least, so that a prompt's bits do not depend on where its first chunk
/// began.
static int64_t chunk_of(int64_t n_left, int64_t budget) {
  if (n_left <= budget) return n_left;
  const int64_t n = std::min(budget, n_left - kMatrixRows);
  return n >= kMatrixRows ? n : budget;
}

std::vector<Engine::Impl::Work> Engine::Impl::plan() {
  std::vector<Work> work;
  const bool decodes = std::ranges::any_of(running, [](const SequencePtr& each) { return each->is_decoding(); });
  int64_t budget = decodes ? options.prefill_chunk : options.prefill_alone;
  for (size_t i = 0; i < running.size(); ++i) {  // oldest first: those put back to make room are not planned yet
    const SequencePtr sequence = running[i];
    if (!sequence->is_decoding()) continue;
    if (!reserve_or_preempt(sequence)) break;
    work.push_back({sequence, 1, true});
    --budget;
  }
  for (const SequencePtr& sequence : running) {
    const int64_t n_left = sequence->n_tokens() - sequence->n_cached;
    if (sequence->is_decoding() || budget == 0) continue;
    const int64_t n = chunk_of(n_left, budget);
    work.push_back({sequence, n, n == n_left});
    budget -= n;
  }
  return work;
}

void Engine::Impl::forward(const std::vector<Work>& work) {
  std::vector<SequenceChunk> batch;
  std::vector<Draw> draws;
  bool greedy = true;
  for (const Work& each : work) {
    const Sequence& sequence = *each.sequence;
    const auto tokens = std::span(sequence.tokens())
                            .subspan(static_cast<size_t>(sequence.n_cached), static_cast<size_t>(each.n_tokens));
    batch.push_back({tokens, sequence.n_cached, sequence.pages.get(), each.wants_logits ? 1 : 0,
                     sequence.request().fast_prefill && sequence.n_shared == 0});
    if (!each.wants_logits) continue;
    const SamplingOptions& sampling = sequence.request().sampling;
    draws.push_back({sampling, sequence.tokens(), sequence.n_generated()});
    greedy = greedy && sampling.temperature == 0 && sampling.repetition_penalty == 1;
  }
  if (greedy) {
    runner.forward_greedy(batch, likeliest);
    drawn.clear();
    for (const Likeliest& each : likeliest) drawn.push_back(each.id);
  } else {
    runner.forward_drawn(batch, draws, drawn);
  }
  if (drawn.size() != draws.size()) {
    throw Error(ErrorKind::bug, str("tokens: ", drawn.size(), ", expected ", draws.size()));
  }
}

void Engine::Impl::accept(const SequencePtr& sequence, size_t row) {
  TokenEvent event;
  try {
    if (drawn[row] < 0) throw_no_numbers();
    event = sequence->accept(drawn[row], options.stop_ids, max_tokens);
  } catch (const Error& error) {  // this one alone ends; the others go on
    event = sequence->end(FinishReason::error, error.what(), error.kind());
  } catch (const std::exception& error) {
    event = sequence->end(FinishReason::error, error.what());
  }
  if (sequence->finished) {
    remove(*sequence);
    sequence->pages.reset();
  }
  sequence->deliver(event);
}

/// Pages of generated tokens are not: they were computed row by row, which is another class of products.
void Engine::Impl::remember(Sequence& sequence) {
  const int64_t n = std::min(sequence.n_cached, sequence.n_prompt()) / kPageTokens;
  if (!known || n <= sequence.n_known) return;
  known->insert(sequence.tokens(), n, *sequence.pages);
  sequence.n_known = n;
}

void Engine::Impl::deliver(const std::vector<Work>& work) {
  size_t row = 0;
  for (const Work& each : work) {
    const size_t mine = each.wants_logits ? row++ : 0;
    if (each.sequence->cancelled) continue;
    // Counted only now: if a callback throws, the sequences behind it compute these tokens again, into the same slots.
    each.sequence->n_cached += each.n_tokens;
    remember(*each.sequence);
    each.sequence->release_exact();
    each.sequence->hand_out_prompt();
    if (each.wants_logits) accept(each.sequence, mine);
  }
}

// Each request hears of it once, even if a callback throws.
void Engine::Impl::fail_all(const std::string& message) {
  std::vector<SequencePtr> all = std::exchange(running, {});
  all.insert(all.end(), waiting.begin(), waiting.end());
  waiting.clear();
  for (const SequencePtr& sequence : all) sequence->pages.reset();
  for (const SequencePtr& sequence : all) {
    try {
      sequence->deliver(sequence->end(FinishReason::error, message));
    } catch (...) {  // the forward pass's own failure is the one that the caller must see
    }
  }
}

bool Engine::Impl::step() {
  finish_cancelled();
  admit();
  const std::vector<Work> work = plan();
  if (!work.empty()) {
    try {
      forward(work);
    } catch (const std::exception& error) {
      fail_all(error.what());
      throw;
    } catch (...) {
      fail_all("unknown failure");
      throw;
    }
    deliver(work);
    finish_cancelled();
  }
  return !running.empty() || !waiting.empty();
}

Engine::Engine(Runner& runner, const Tokenizer* tokenizer, EngineOptions options)
    : impl_(std::make_unique<Impl>(runner, tokenizer, std::move(options))) {}
Engine::~Engine() = default;

uint64_t Engine::submit(Request request, TokenFn on_token, Prefix prefix) {
  impl_->check(request);
  if (prefix.pages && (prefix.n_tokens > prefix.pages->capacity() || n_running() + n_waiting() > 0)) {
    throw Error(ErrorKind::bug, str("a prefix of ", prefix.n_tokens, " tokens in pages for ", prefix.pages->capacity(),
                                    ", beside ", n_running() + n_waiting(), " requests"));
  }
  const uint64_t id = impl_->next_id;
  std::shared_ptr<Sequence> first;
  for (int i = 0; i < request.n_samples; ++i) {
    Request sample = request;
    sample.sampling.seed += static_cast<uint64_t>(i);
    auto sequence = std::make_shared<Sequence>(impl_->next_id++, std::move(sample), on_token, impl_->tokenizer);
    if (first) {
      sequence->first_sample = first;
      sequence->prompt_is_out = true;
    } else {
      first = sequence;
    }
    impl_->waiting.push_back(std::move(sequence));
  }
  if (prefix.pages) {
    first->n_cached = first->n_shared = reusable_tokens(first->n_tokens(), prefix.n_tokens);
    first->pages = std::move(prefix.pages);
  }
  return id;
}

void Engine::cancel(uint64_t request) {
  const auto mark = [&](const Impl::SequencePtr& each) {
    if (each->id() == request) each->cancelled = true;
  };
  std::for_each(impl_->running.begin(), impl_->running.end(), mark);
  std::for_each(impl_->waiting.begin(), impl_->waiting.end(), mark);
}

bool Engine::step() {
  if (impl_->in_step) throw Error(ErrorKind::bug, "step() called from inside a callback");
  struct Guard {
    bool& flag;
    explicit Guard(bool& f) : flag(f) { flag = true; }
    ~Guard() { flag = false; }
  };
  const Guard guard(impl_->in_step);
  return impl_->step();
}

int Engine::n_running() const { return static_cast<int>(impl_->running.size()); }
int Engine::n_waiting() const { return static_cast<int>(impl_->waiting.size()); }

}  // namespace firstlight
