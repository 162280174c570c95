// SPDX-License-Identifier: Apache-2.0
// What a model's config.json (hub spelling or transformers 5 spelling) or GGUF metadata says about its arithmetic.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/base/dtype.h"

namespace firstlight {

enum class Architecture { llama, mistral, qwen2, qwen3 };
std::string_view to_string(Architecture architecture) noexcept;  ///< "llama", …: transformers' model_type

/// Rotary embedding scaling. `linear`: positions / factor. `llama3`: Llama 3.1's per-frequency interpolation.
struct RopeScaling {
  enum class Kind { none, linear, llama3 };
  Kind kind = Kind::none;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_max_position = 8192;
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  std::string hf_class;  ///< "LlamaForCausalLM"
  int n_layers = 0;
  int dim = 0;         ///< hidden_size
  int hidden_dim = 0;  ///< intermediate_size
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_context = 0;  ///< max_position_embeddings
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  ///< Qwen3: RMS norm of each head of q and k before rope
  DType dtype = DType::bf16;
  std::vector<int> eos_token_ids;  ///< of config.json (of generation_config.json: see stop_token_ids)
  std::optional<int> bos_token_id;
  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// Reads config.json's text. Throws Error{bad_input} for nonsense (rope_scaling and rope_parameters that contradict
/// each other and BOS or EOS ids outside the vocabulary among it) and Error{unsupported}, by name, for an unknown
/// architecture or activation, yarn and other rope types, a quantization_config, or a sliding window shorter than the
/// context.
ModelConfig parse_hf_config(std::string_view json);

/// Checks sizes against each other and against sane limits (n_heads divisible by n_kv_heads, nothing zero or huge);
/// throws Error{bad_input}.
void validate(const ModelConfig& config);

/// The inverse frequencies of rotary pairs, [head_dim / 2], with scaling applied, as transformers computes them (in
/// double).
std::vector<double> rope_inverse_frequencies(const ModelConfig& config);

/// eos ids of config.json and generation_config.json together, sorted, unique. Empty text: file absent. Throws
/// Error{bad_input} for an id outside the vocabulary.
std::vector<int> stop_token_ids(const ModelConfig& config, std::string_view generation_config_json);

}  // namespace firstlight
