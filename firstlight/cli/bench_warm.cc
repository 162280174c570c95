// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/bench_warm.h"

#include "firstlight/base/error.h"
#include "firstlight/cli/bench_rest.h"
#include "firstlight/cli/generate.h"
#include "firstlight/cli/token_ids.h"
#include "firstlight/engine/engine.h"

namespace firstlight::cli {

namespace {

WarmStart start_once(const Context& outer, const SessionOptions& options, const std::string& prompt,
                     const std::string& ids_file, bool& on_gpu) {
  Context context;
  context.stop = outer.stop;
  context.json = outer.json;
  context.quiet = true;
  const double begin = seconds_since_exec();
  Session session(context, options);
  const ModelText& text = session.text();
  EngineOptions engine_options;
  engine_options.max_context = session.max_context();
  engine_options.prefill_alone = session.pass_tokens();
  Engine engine(session.runner(), text.tokenizer.get(), engine_options);
  GenerateOptions generation;
  generation.max_new_tokens = 1;
  generation.greedy = generation.ignore_eos = true;
  std::vector<int> ids =
      ids_file.empty() ? text.encode_chat({{"user", prompt}}) : read_ids(ids_file, session.config().vocab_size);
  const double prompt_begin = seconds_since_exec();
  const Answer answer = generate(context, engine, generation.request(std::move(ids)), [](std::string_view) {});
  if (answer.finish == FinishReason::cancelled) throw Interrupted();
  context.timeline.add("prompt → first token", prompt_begin, answer.first_token_s);
  WarmStart start;
  start.load = session.wait();
  on_gpu = session.device().kind == Device::Kind::cuda;
  start.first_token_s = answer.first_token_s - begin;
  for (const Phase& phase : context.timeline.phases()) {
    start.phases.push_back({phase.name, phase.start_s - begin, phase.end_s - begin});
  }
  return start;
}

}  // namespace

std::vector<WarmStart> measure_warm_starts(Context& context, const SessionOptions& options, const std::string& prompt,
                                           const std::string& ids_file, int n) {
  constexpr uint64_t kMostMemory = 150'000'000'000;  // of a GPU: the KV cache takes what is free
  std::vector<WarmStart> starts;
  for (int round = -1; round < n; ++round) {
    if (context.stop.stop_requested()) throw Interrupted();
    SessionOptions round_options = options;
    if (round < 0) round_options.reader = "buffered";  // fills the page cache
    bool on_gpu = false;
    WarmStart start = start_once(context, round_options, prompt, ids_file, on_gpu);
    if (on_gpu) rest_after_freeing(kMostMemory);
    if (round >= 0) starts.push_back(std::move(start));
  }
  return starts;
}

}  // namespace firstlight::cli
