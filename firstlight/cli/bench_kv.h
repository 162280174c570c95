// SPDX-License-Identifier: Apache-2.0
// firstlight bench kv: what each kind of KV cache loses and how fast it is, apart from how that is printed.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "firstlight/cli/context.h"
#include "firstlight/cli/spread.h"
#include "firstlight/model/runner.h"

namespace firstlight::cli {

struct KvSpeedOptions {
  std::vector<KvKind> kinds;  ///< the first is what the others are compared with
  std::vector<int64_t> contexts;
  std::vector<int> batches;  ///< sequences in a step
  int n_steps = 16;          ///< measured, of each kind at each context and batch
  int n_threads = 0;         ///< 0: usable cores
};

/// Steps of `batch` sequences that have `context` tokens each.
struct KvStep {
  KvKind kind{};
  int batch = 1;
  int64_t context = 0;
  Spread seconds;
};

/// A prompt's tokens between one context and the one before, of all sequences.
struct KvPrompt {
  KvKind kind{};
  int batch = 1;
  int64_t begin = 0, end = 0;
  double seconds = 0;
};

struct KvSpeed {
  std::vector<KvStep> steps;
  std::vector<KvPrompt> prompts;
  std::vector<std::string> left_out;  ///< "bf16, 32 sequences of 32768 tokens: no room (…)"
};

/// Whole passes of the model over sequences of made-up tokens, the kinds in turn, a few steps each, so that a noisy
/// minute hits each; three steps before those counted (a GPU's are recorded meanwhile). Blocks; throws Interrupted
/// between passes. What does not fit in memory is left out and said.
int64_t tokens_of_steps(int n_steps);  ///< that a sequence grows by at each context
KvSpeed measure_kv_speed(const Context& context, const ModelConfig& config, std::vector<RankWeights>& weights,
                         const KvSpeedOptions& options);

/// What a kind may lose (docs/turboquant.md): bounds of SmolLM2's loss, which has a head_dim that is hard on codes.
struct KvGate {
  double mean_kld = 0, p99_kld = 0, same_top1 = 0, perplexity_change = 0;  ///< 0: no bound
};
std::optional<KvGate> kv_gate(KvKind kind);
/// What of `kind`, an entry of KvQuality::to_json()'s "kinds", is out of bounds: "mean KLD .0048 (.0045)"; empty if
/// nothing is.
std::vector<std::string> missed(const KvGate& gate, const nlohmann::ordered_json& kind);

struct BenchKvReport {
  std::string model, device, text;  ///< text: which quality was measured on
  ModelConfig config;
  int tp = 1;
  std::optional<nlohmann::ordered_json> quality;  ///< of KvQuality::to_json()
  std::vector<KvKind> kinds;                      ///< with speed and room; the first is compared with
  KvSpeed speed;
};

/// Bytes that a token takes in a sequence of n_tokens, over all layers and ranks, exact pages included.
double kv_bytes_a_token(const ModelConfig& config, int tp, KvKind kind, int64_t n_tokens);

std::string to_markdown(const BenchKvReport& report);
nlohmann::ordered_json to_json(const BenchKvReport& report);

}  // namespace firstlight::cli
