// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/synth_models.h"

#include <array>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/shard.h"

namespace firstlight {

namespace {

struct Known {
  std::string_view name, model_type, hf_class;
  int dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, max_context;
  double norm_eps, rope_theta;
  double llama3_factor;  // 0: no scaling
  bool tied;
  int bos, eos;
};

constexpr std::string_view kLlama = "LlamaForCausalLM", kQwen2 = "Qwen2ForCausalLM", kQwen3 = "Qwen3ForCausalLM";
constexpr std::array<Known, 11> kKnown{{
    {"llama-3.1-8b", "llama", kLlama, 4096, 14336, 32, 32, 8, 128, 128256, 131072, 1e-5, 5e5, 8, false, 128000, 128001},
    {"llama-3.2-1b", "llama", kLlama, 2048, 8192, 16, 32, 8, 64, 128256, 131072, 1e-5, 5e5, 32, true, 128000, 128001},
    {"llama-2-7b", "llama", kLlama, 4096, 11008, 32, 32, 32, 128, 32000, 4096, 1e-5, 1e4, 0, false, 1, 2},
    {"llama-3.1-70b", "llama", kLlama, 8192, 28672, 80, 64, 8, 128, 128256, 131072, 1e-5, 5e5, 8, false, 128000,
     128001},
    {"llama-3.1-405b", "llama", kLlama, 16384, 53248, 126, 128, 8, 128, 128256, 131072, 1e-5, 5e5, 8, false, 128000,
     128001},
    {"mistral-7b-v0.3", "mistral", "MistralForCausalLM", 4096, 14336, 32, 32, 8, 128, 32768, 32768, 1e-5, 1e6, 0, false,
     1, 2},
    {"qwen2.5-7b", "qwen2", kQwen2, 3584, 18944, 28, 28, 4, 128, 152064, 131072, 1e-6, 1e6, 0, false, 151643, 151643},
    {"qwen2.5-0.5b", "qwen2", kQwen2, 896, 4864, 24, 14, 2, 64, 151936, 32768, 1e-6, 1e6, 0, true, 151643, 151643},
    {"qwen3-8b", "qwen3", kQwen3, 4096, 12288, 36, 32, 8, 128, 151936, 40960, 1e-6, 1e6, 0, false, 151643, 151645},
    {"qwen3-0.6b", "qwen3", kQwen3, 1024, 3072, 28, 16, 8, 128, 151936, 40960, 1e-6, 1e6, 0, true, 151643, 151645},
    {"smollm2-135m", "llama", kLlama, 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e-5, 1e5, 0, true, 0, 0},
}};

}  // namespace

std::vector<std::string> synth_names() {
  std::vector<std::string> names;
  for (const Known& known : kKnown) names.emplace_back(known.name);
  return names;
}

std::string synth_config(std::string_view name) {
  for (const Known& m : kKnown) {
    if (m.name != name) continue;
    nlohmann::ordered_json c;
    c["architectures"] = {m.hf_class};
    c["model_type"] = m.model_type;
    c["hidden_size"] = m.dim;
    c["intermediate_size"] = m.hidden_dim;
    c["num_hidden_layers"] = m.n_layers;
    c["num_attention_heads"] = m.n_heads;
    c["num_key_value_heads"] = m.n_kv_heads;
    // transformers' Qwen2 has no such key: it divides.
    if (m.model_type != "qwen2") c["head_dim"] = m.head_dim;
    c["vocab_size"] = m.vocab_size;
    c["max_position_embeddings"] = m.max_context;
    c["rms_norm_eps"] = m.norm_eps;
    c["rope_theta"] = m.rope_theta;
    if (m.llama3_factor > 0) {
      c["rope_scaling"] = {{"rope_type", "llama3"},
                           {"factor", m.llama3_factor},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0},
                           {"original_max_position_embeddings", 8192}};
    }
    if (m.model_type == "mistral") c["sliding_window"] = nullptr;
    c["hidden_act"] = "silu";
    c["tie_word_embeddings"] = m.tied;
    c["bos_token_id"] = m.bos;
    c["eos_token_id"] = m.eos;
    c["torch_dtype"] = "bfloat16";
    return c.dump(2) + "\n";
  }
  std::string names;
  for (const Known& known : kKnown) names += str(names.empty() ? "" : ", ", known.name);
  throw Error(ErrorKind::bad_input, str("no shapes are known for '", name, "'; known: ", names));
}

}  // namespace firstlight
