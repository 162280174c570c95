// SPDX-License-Identifier: Apache-2.0
// The KV cache of a session: how many tokens it holds, and what its codes are centred by.
#include <algorithm>
#include <limits>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {

KvUse Session::kv_use() const {
  const uint64_t exact = exact_bytes(config(), tp_, runner_options_);
  const uint64_t pages =
      static_cast<uint64_t>(runner_options_.n_pages) * kv_page_bytes(config(), tp_, runner_options_.kv);
  const uint64_t bf16_pages = (pages + exact) / kv_page_bytes(config(), tp_, KvKind::bf16);
  return {runner_options_.kv,
          pages + exact,
          exact,
          runner_options_.n_pages * kPageTokens,
          static_cast<int64_t>(bf16_pages) * kPageTokens,
          runner_options_.means ? runner_options_.means->hash() : ""};
}

/// What make_runner would refuse is refused before a byte of the weights is read.
void Session::read_means(const ModelConfig& config, const std::string& path, KvKind kv) {
  if (!is_compressed(kv))
    throw Error(ErrorKind::bad_input, str("--kv-calibration centres codes, and --kv ", to_string(kv),
                                          " keeps numbers: choose a preset of codes, or leave it out"));
  runner_options_.means = std::make_shared<KvMeans>(read_kv_calibration(path, config, fingerprint()).means);
}

/// On a GPU a prompt that one pass takes is computed layer by layer as the weights land, and products of 2,048 rows are
/// a tenth faster than of 512. As many rows as the context needs and 384 MiB a rank hold, with exact pages beside
/// codes: 2,048 of Llama-3.1-8B's shapes over bf16 pages, 1,024 over codes.
int Session::pass_tokens_for(const ModelConfig& config, KvKind kv, int64_t context) const {
  constexpr uint64_t kMostBytes = uint64_t{384} << 20;
  RunnerOptions options = runner_options_;
  if (device_.kind == Device::Kind::cpu) return options.max_batch_tokens;
  options.kv = kv;
  for (const int rows : {2048, 1024}) {
    options.max_batch_tokens = rows;
    if (is_compressed(kv)) options.n_exact_pages = exact_pages_for(1, rows, std::numeric_limits<int64_t>::max());
    const uint64_t bytes = scratch_bytes(config, tp_, options) + exact_bytes(config, tp_, options);
    if (context > rows / 2 && bytes <= kMostBytes * static_cast<uint64_t>(tp_)) return rows;
  }
  return runner_options_.max_batch_tokens;
}

void Session::choose_context(const ModelConfig& config, uint64_t arena_bytes, const SessionOptions& options,
                             KvKind kv) {
  const auto pages_for = [](int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; };
  const uint64_t page_bytes = kv_page_bytes(config, tp_, kv);
  const uint64_t exact_page_bytes = is_compressed(kv) ? kv_page_bytes(config, tp_, KvKind::bf16) : 0;
  const auto exact_pages = [&](int64_t n_pages) {
    return is_compressed(kv) ? exact_pages_for(1, runner_options_.max_batch_tokens, n_pages) : 0;
  };
  /// Each of the first pages has an exact one, until there are as many as a sequence ever needs.
  const auto pages_in = [&](uint64_t memory) {
    const int64_t most = exact_pages(std::numeric_limits<int64_t>::max());
    const auto all_exact = static_cast<int64_t>(memory / (page_bytes + exact_page_bytes));
    return all_exact < most
               ? all_exact
               : static_cast<int64_t>((memory - static_cast<uint64_t>(most) * exact_page_bytes) / page_bytes);
  };
  runner_options_.kv = kv;
  if (options.max_context > config.max_context) {
    throw Error(ErrorKind::bad_input,
                str("--max-context ", options.max_context, ": the model has positions for ", config.max_context));
  }
  const int64_t most = options.most_context > 0 ? options.most_context : config.max_context;
  const int64_t wanted = options.max_context > 0 ? options.max_context : std::min<int64_t>(most, config.max_context);
  max_context_ = wanted;
  runner_options_.max_batch_tokens = pass_tokens_for(config, kv, wanted);
  runner_options_.n_pages = pages_for(wanted);
  if (!options.kv_memory.empty()) {
    const uint64_t memory = parse_size(options.kv_memory, "--kv-memory");
    runner_options_.n_pages = pages_in(memory);
    max_context_ = std::min(wanted, runner_options_.n_pages * kPageTokens);
    if (max_context_ == 0)
      throw Error(ErrorKind::bad_input,
                  str("--kv-memory ", options.kv_memory, ": one page of 64 tokens takes ",
                      human_bytes(static_cast<double>(page_bytes)),
                      exact_page_bytes > 0 ? str(", and its exact page beside codes ",
                                                 human_bytes(static_cast<double>(exact_page_bytes)))
                                           : ""));
  } else if (options.max_context == 0) {
    // The model's own maximum (131,072 tokens for Llama 3.1) may not fit: unless told, take what does. 10 % of the free
    // memory stays for others.
    const uint64_t scratch = scratch_bytes(config, tp_, runner_options_) + extra_bytes_;
    // Each GPU as much as the first: the others' contexts are not waited for here, and the load asks every one.
    int last = devices_[0].index;
    for (const Device device : devices_) last = std::max(last, device.index);
    const double n = last + 1 - devices_[0].index;
    const uint64_t free = free_memory(device_), later = std::min(free, mapped_by_threads(device_, n_threads_));
    const auto room = static_cast<uint64_t>(0.9 * n * static_cast<double>(free - later));
    const int64_t fits = room > arena_bytes + scratch ? pages_in(room - arena_bytes - scratch) : 1;
    if (fits < runner_options_.n_pages) {
      runner_options_.n_pages = std::max<int64_t>(1, fits);
      max_context_ = runner_options_.n_pages * kPageTokens;
    }
  }
  runner_options_.n_exact_pages = exact_pages(runner_options_.n_pages);
  if (max_context_ < wanted)
    say(*context_,
        str("context: ", max_context_, " of the model's ", config.max_context, " tokens (what fits in memory)"));
}

}  // namespace firstlight::cli
