// SPDX-License-Identifier: Apache-2.0
// Keys as https://github.com/ggml-org/ggml/blob/master/docs/gguf.md names them and llama.cpp's converter writes them.
#include "firstlight/ckpt/gguf_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numbers>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/source_json.h"

namespace firstlight {

namespace {

[[noreturn]] void bad(const std::string& what) { throw Error(ErrorKind::bad_input, "GGUF: " + what); }
[[noreturn]] void unsupported(const std::string& what) { throw Error(ErrorKind::unsupported, "GGUF: " + what); }

/// The metadata of one architecture: "llama.block_count" is asked for as "block_count".
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string architecture)
      : metadata_(metadata), prefix_(std::move(architecture) + ".") {}
  std::string name(const char* key) const { return prefix_ + key; }
  bool has(const char* key) const { return metadata_.find(name(key)) != nullptr; }
  int integer(const char* key) const {
    if (!has(key)) bad(str("metadata '", name(key), "' is missing"));
    return integer_or(key, 0);
  }
  int integer_or(const char* key, int otherwise) const {
    const auto value = metadata_.integer(name(key));
    if (!value) return otherwise;
    if (*value < 0 || *value > std::numeric_limits<int>::max()) bad(str("metadata '", name(key), "' is ", *value));
    return static_cast<int>(*value);
  }
  /// An f32 as the shortest decimal number that is it: 1e-5, not 9.99999974737875e-06, as in the config.json it came
  /// from.
  double number_or(const char* key, double otherwise) const {
    const auto value = metadata_.number(name(key));
    if (!value) return otherwise;
    if (!std::isfinite(*value)) bad(str("metadata '", name(key), "' is not finite"));
    if (metadata_.find(name(key))->type != GgufValueType::f32) return *value;
    std::array<char, 32> text;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), static_cast<float>(*value)).ptr;
    double shortest = 0;
    std::from_chars(text.data(), end, shortest);
    return shortest;
  }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

/// One value a layer is written as an array by some converters; equal values are one.
int heads(const GgufMetadata& metadata, const std::string& key, int otherwise) {
  const GgufValue* value = metadata.find(key);
  if (value == nullptr) return otherwise;
  int64_t n = 0;
  if (value->type == GgufValueType::array) {
    const auto all = metadata.integers(key);
    if (all->empty()) bad(str("metadata '", key, "' is empty"));
    n = all->front();
    if (std::any_of(all->begin(), all->end(), [n](int64_t x) { return x != n; }))
      unsupported(str("'", key, "' differs from layer to layer"));
  } else {
    n = *metadata.integer(key);
  }
  if (n < 0 || n > std::numeric_limits<int>::max()) bad(str("metadata '", key, "' is ", n));
  return static_cast<int>(n);
}

void refuse_what_changes_the_arithmetic(const Keys& keys, const ModelConfig& c) {
  if (keys.integer_or("expert_count", 0) > 0) unsupported("mixture-of-experts models are not supported");
  for (const char* key : {"logit_scale", "embedding_scale", "residual_scale", "attention.scale"}) {
    const double scale = keys.number_or(key, 0);
    if (scale != 0 && scale != 1) unsupported(str("'", keys.name(key), "' ", scale, " is not supported"));
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"}) {
    if (keys.number_or(key, 0) != 0) unsupported(str("'", keys.name(key), "' is not supported"));
  }
  const int window = keys.integer_or("attention.sliding_window", 0);
  if (window > 0 && window < c.max_context) {
    unsupported(str("a sliding window of ", window, " tokens, shorter than the context of ", c.max_context,
                    ", is not supported"));
  }
  const int rotary = keys.integer_or("rope.dimension_count", c.head_dim);
  if (rotary != c.head_dim)
    unsupported(str("rotary embedding of ", rotary, " of ", c.head_dim, " dimensions is not supported"));
  if (keys.integer_or("attention.value_length", c.head_dim) != c.head_dim)
    unsupported("value heads of another size than key heads are not supported");
}

void read_scaling(const GgufMetadata& metadata, const Keys& keys, ModelConfig& c) {
  const std::string type(
      metadata.text(keys.name("rope.scaling.type")).value_or(keys.has("rope.scale_linear") ? "linear" : "none"));
  if (type == "none") return;
  if (type != "linear") unsupported(str("rope scaling '", type, "' is not supported (linear and Llama 3's are)"));
  c.rope_scaling.factor = keys.number_or("rope.scaling.factor", keys.number_or("rope.scale_linear", 1));
  if (!(c.rope_scaling.factor > 0)) bad(str("rope scaling factor is ", c.rope_scaling.factor));
  c.rope_scaling.kind = c.rope_scaling.factor == 1 ? RopeScaling::Kind::none : RopeScaling::Kind::linear;
}

struct TensorFacts {
  bool has_output = false, q_bias = false, o_bias = false, mlp_bias = false;
  int64_t vocab_size = 0;
  DType dtype = DType::bf16;
};
TensorFacts look_at_tensors(const std::vector<GgufTensor>& tensors) {
  TensorFacts facts;
  bool all_f32 = true, all_f16 = true;  // of the matrices: norms are always f32
  for (const GgufTensor& tensor : tensors) {
    facts.has_output |= tensor.name == "output.weight";
    facts.q_bias |= tensor.name == "blk.0.attn_q.bias";
    facts.o_bias |= tensor.name == "blk.0.attn_output.bias";
    facts.mlp_bias |= tensor.name == "blk.0.ffn_down.bias";
    if (tensor.name == "token_embd.weight" && tensor.shape.size() == 2) facts.vocab_size = tensor.shape[0];
    if (tensor.shape.size() < 2) continue;
    all_f32 &= tensor.type->id == static_cast<uint32_t>(GgmlType::f32);
    all_f16 &= tensor.type->id == static_cast<uint32_t>(GgmlType::f16);
  }
  facts.dtype = all_f32 ? DType::f32 : all_f16 ? DType::f16 : DType::bf16;
  return facts;
}

std::optional<int> token_id(const GgufMetadata& metadata, const char* key) {
  const auto id = metadata.integer(key);
  // 2³² − 1 is how some converters write "none".
  if (!id || *id < 0 || *id > std::numeric_limits<int>::max()) return std::nullopt;
  return static_cast<int>(*id);
}

}  // namespace

RopeScaling recover_rope_scaling(std::span<const float> factors, double theta, int head_dim) {
  RopeScaling scaling;
  if (std::all_of(factors.begin(), factors.end(), [](float f) { return f == 1.0f; })) return scaling;
  scaling.kind = RopeScaling::Kind::llama3;
  scaling.low_freq_factor = 1;
  scaling.high_freq_factor = 4;
  scaling.original_max_position = 8192;
  ModelConfig plain, scaled;
  plain.rope_theta = scaled.rope_theta = theta;
  plain.head_dim = scaled.head_dim = head_dim;
  for (const double factor : {8.0, 32.0}) {
    scaling.factor = factor;
    scaled.rope_scaling = scaling;
    const auto unscaled = rope_inverse_frequencies(plain), expected = rope_inverse_frequencies(scaled);
    bool equal = factors.size() == expected.size();
    for (size_t i = 0; equal && i < expected.size(); ++i) {
      // The converter computes in f32 with torch's pow: a few units in the last place. The known sets differ by a
      // factor of 4.
      const double f = unscaled[i] / expected[i];
      equal = std::abs(static_cast<double>(factors[i]) - f) <= 2e-5 * f;
    }
    if (equal) return scaling;
  }
  unsupported("rope_freqs.weight is none of the known scalings (Llama 3.1: factor 8, Llama 3.2: factor 32)");
}

std::vector<int> gguf_stop_tokens(const GgufMetadata& metadata) {
  std::vector<int> ids;
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    if (const auto id = token_id(metadata, key)) ids.push_back(*id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

ModelConfig gguf_model_config(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors,
                              std::span<const float> rope_factors) {
  const auto named = metadata.text("general.architecture");
  if (!named) bad("metadata 'general.architecture' is missing");
  ModelConfig c;
  if (*named == "llama")
    c.architecture = Architecture::llama, c.hf_class = "LlamaForCausalLM";
  else if (*named == "qwen2")
    c.architecture = Architecture::qwen2, c.hf_class = "Qwen2ForCausalLM";
  else if (*named == "qwen3")
    c.architecture = Architecture::qwen3, c.hf_class = "Qwen3ForCausalLM";
  else
    unsupported(str("architecture '", named->substr(0, 64), "' is not supported (llama, qwen2 and qwen3 are)"));
  const Keys keys(metadata, std::string(*named));
  const TensorFacts facts = look_at_tensors(tensors);
  c.n_layers = keys.integer("block_count");
  c.dim = keys.integer("embedding_length");
  c.hidden_dim = heads(metadata, keys.name("feed_forward_length"), 0);
  c.n_heads = heads(metadata, keys.name("attention.head_count"), 0);
  c.n_kv_heads = heads(metadata, keys.name("attention.head_count_kv"), c.n_heads);
  c.head_dim = keys.integer_or("attention.key_length", c.n_heads > 0 ? c.dim / c.n_heads : 0);
  c.max_context = keys.integer("context_length");
  if (facts.vocab_size <= 0 || facts.vocab_size > (1 << 26))
    bad("tensor 'token_embd.weight' is missing or has an impossible shape");
  c.vocab_size = static_cast<int>(facts.vocab_size);
  c.norm_eps = keys.number_or("attention.layer_norm_rms_epsilon", 1e-6);
  c.rope_theta = keys.number_or("rope.freq_base", 10000);
  c.tied_embeddings = !facts.has_output;
  c.qkv_bias = c.architecture == Architecture::qwen2 || facts.q_bias;
  c.o_bias = facts.o_bias;
  c.mlp_bias = facts.mlp_bias;
  c.qk_norm = c.architecture == Architecture::qwen3;
  c.dtype = facts.dtype;
  validate(c);
  // config.json has one word for all attention biases; a GGUF with some of them is another architecture under this
  // name.
  if (c.architecture != Architecture::qwen2 && c.qkv_bias != c.o_bias)
    unsupported("attention biases on q, k, v or on the output alone are not supported");
  if (c.architecture != Architecture::llama && c.mlp_bias)
    unsupported("biases in the feed-forward part are not supported");
  if (c.architecture == Architecture::qwen2 && c.o_bias)
    unsupported("a bias on the attention's output is not supported");
  refuse_what_changes_the_arithmetic(keys, c);
  read_scaling(metadata, keys, c);
  if (!rope_factors.empty()) {
    if (c.rope_scaling.kind != RopeScaling::Kind::none)
      unsupported("rope_freqs.weight together with another rope scaling is not supported");
    c.rope_scaling = recover_rope_scaling(rope_factors, c.rope_theta, c.head_dim);
  }
  c.eos_token_ids = gguf_stop_tokens(metadata);
  c.bos_token_id = token_id(metadata, "tokenizer.ggml.bos_token_id");
  validate(c);
  return c;
}

namespace {

void write_token_ids(JsonWriter& json, const ModelConfig& c, const GgufMetadata& metadata) {
  json.key("bos_token_id");
  c.bos_token_id ? json.number(*c.bos_token_id) : json.null();
  json.key("eos_token_id");
  if (c.eos_token_ids.empty()) {
    json.null();
  } else if (c.eos_token_ids.size() == 1) {
    json.number(c.eos_token_ids.front());
  } else {
    json.begin_array();
    for (const int id : c.eos_token_ids) json.number(id);
    json.end_array();
  }
  if (const auto pad = token_id(metadata, "tokenizer.ggml.padding_token_id")) json.key("pad_token_id").number(*pad);
}

std::string_view torch_name(DType dtype) {
  return dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
}

}  // namespace

std::string make_config_json(const ModelConfig& c, const GgufMetadata& metadata) {
  JsonWriter json;
  json.begin_object();
  json.key("architectures").begin_array().string(c.hf_class).end_array();
  json.key("model_type").string(to_string(c.architecture));
  json.key("vocab_size").number(c.vocab_size);
  json.key("hidden_size").number(c.dim);
  json.key("intermediate_size").number(c.hidden_dim);
  json.key("num_hidden_layers").number(c.n_layers);
  json.key("num_attention_heads").number(c.n_heads);
  json.key("num_key_value_heads").number(c.n_kv_heads);
  json.key("head_dim").number(c.head_dim);
  json.key("hidden_act").string("silu");
  json.key("max_position_embeddings").number(c.max_context);
  json.key("rms_norm_eps").number(c.norm_eps);
  json.key("rope_theta").number(c.rope_theta);
  json.key("rope_scaling");
  if (c.rope_scaling.kind == RopeScaling::Kind::none) {
    json.null();
  } else {
    const RopeScaling& s = c.rope_scaling;
    const bool llama3 = s.kind == RopeScaling::Kind::llama3;
    json.begin_object().key("rope_type").string(llama3 ? "llama3" : "linear").key("factor").number(s.factor);
    if (llama3) {
      json.key("low_freq_factor").number(s.low_freq_factor).key("high_freq_factor").number(s.high_freq_factor);
      json.key("original_max_position_embeddings").number(s.original_max_position);
    }
    json.end_object();
  }
  json.key("tie_word_embeddings").boolean(c.tied_embeddings);
  if (c.architecture == Architecture::llama || c.architecture == Architecture::qwen3)
    json.key("attention_bias").boolean(c.qkv_bias);
  if (c.architecture == Architecture::llama) json.key("mlp_bias").boolean(c.mlp_bias);
  if (c.architecture == Architecture::qwen2 || c.architecture == Architecture::qwen3)
    json.key("use_sliding_window").boolean(false);
  write_token_ids(json, c, metadata);
  json.key("torch_dtype").string(torch_name(c.dtype));
  json.end_object();
  return json.take();
}

std::string make_generation_config_json(const ModelConfig& c, const GgufMetadata& metadata) {
  JsonWriter json;
  json.begin_object();
  write_token_ids(json, c, metadata);
  json.end_object();
  return json.take();
}

}  // namespace firstlight
