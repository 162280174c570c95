// SPDX-License-Identifier: Apache-2.0
// config.json of the Llama family, read as transformers 5.23 reads it (configuration_{llama,mistral,qwen2,qwen3}.py and
// modeling_rope_utils.py there): the same defaults for absent keys, both spellings of rope and dtype. What would change
// the arithmetic and is not implemented is refused by name.
#include "firstlight/ckpt/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/source_json.h"

namespace firstlight {

namespace {

using nlohmann::json;

constexpr const char* kFile = "config.json";

/// What transformers assumes where config.json is silent. 0 in n_kv_heads: as many as n_heads; in head_dim: dim /
/// n_heads.
struct Family {
  Architecture architecture;
  std::string_view model_type, hf_class;
  int vocab_size, dim, hidden_dim, n_kv_heads, head_dim, max_context;
  int bos, eos;  // -1: none
};
constexpr std::array<Family, 4> kFamilies{{
    {Architecture::llama, "llama", "LlamaForCausalLM", 32000, 4096, 11008, 0, 0, 2048, 1, 2},
    {Architecture::mistral, "mistral", "MistralForCausalLM", 32000, 4096, 14336, 8, 0, 131072, 1, 2},
    {Architecture::qwen2, "qwen2", "Qwen2ForCausalLM", 151936, 4096, 22016, 32, 0, 32768, -1, -1},
    {Architecture::qwen3, "qwen3", "Qwen3ForCausalLM", 151936, 4096, 22016, 32, 128, 32768, -1, -1},
}};

[[noreturn]] void bad(const std::string& what) { throw Error(ErrorKind::bad_input, str(kFile, ": ", what)); }
[[noreturn]] void unsupported(const std::string& what) { throw Error(ErrorKind::unsupported, str(kFile, ": ", what)); }

std::string brief(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

/// The value of a key, or null if the key is absent or its value is null.
const json* find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

int as_int(const json& value, const char* key) {
  if (!value.is_number_integer()) bad(str(key, " is ", brief(value), ", expected a whole number"));
  const bool fits = value.is_number_unsigned()
                        ? value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int>::max())
                        : value.get<int64_t>() >= std::numeric_limits<int>::min();
  if (!fits) bad(str(key, " is ", brief(value), ", which does not fit 31 bits"));
  return value.get<int>();
}
int int_or(const json& object, const char* key, int otherwise) {
  const auto it = object.find(key);
  return it == object.end() ? otherwise : as_int(*it, key);
}
double double_or(const json& object, const char* key, double otherwise) {
  const auto it = object.find(key);
  if (it == object.end()) return otherwise;
  if (!it->is_number()) bad(str(key, " is ", brief(*it), ", expected a number"));
  return it->get<double>();
}
bool bool_or(const json& object, const char* key, bool otherwise) {
  const auto it = object.find(key);
  if (it == object.end()) return otherwise;
  if (!it->is_boolean()) bad(str(key, " is ", brief(*it), ", expected true or false"));
  return it->get<bool>();
}
std::string string_of(const json& value, const char* key) {
  if (!value.is_string()) bad(str(key, " is ", brief(value), ", expected a string"));
  return value.get<std::string>();
}

const Family& family_of(const json& root) {
  const json* classes = find(root, "architectures");
  std::string hf_class, model_type;
  if (classes != nullptr) {
    if (!classes->is_array() || classes->size() != 1)
      bad(str("architectures is ", brief(*classes), ", expected a list of one name"));
    hf_class = string_of((*classes)[0], "architectures[0]");
  }
  if (const json* type = find(root, "model_type")) model_type = string_of(*type, "model_type");
  if (hf_class.empty() && model_type.empty()) bad("neither architectures nor model_type is there");
  for (const Family& family : kFamilies) {
    const bool class_fits = hf_class.empty() || hf_class == family.hf_class;
    const bool type_fits = model_type.empty() || model_type == family.model_type;
    if (class_fits && type_fits) return family;
  }
  unsupported(
      str("architecture '", hf_class, "' of model_type '", model_type,
          "' is not supported (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM are)"));
}

void read_sizes(const json& root, const Family& family, ModelConfig& c) {
  c.vocab_size = int_or(root, "vocab_size", family.vocab_size);
  c.dim = int_or(root, "hidden_size", family.dim);
  c.hidden_dim = int_or(root, "intermediate_size", family.hidden_dim);
  c.n_layers = int_or(root, "num_hidden_layers", 32);
  c.n_heads = int_or(root, "num_attention_heads", 32);
  c.max_context = int_or(root, "max_position_embeddings", family.max_context);
  const bool kv_is_null = root.contains("num_key_value_heads") && root["num_key_value_heads"].is_null();
  c.n_kv_heads = kv_is_null ? 0 : int_or(root, "num_key_value_heads", family.n_kv_heads);
  if (c.n_kv_heads == 0 && (kv_is_null || !root.contains("num_key_value_heads"))) c.n_kv_heads = c.n_heads;
  if (const json* head_dim = find(root, "head_dim")) {
    c.head_dim = as_int(*head_dim, "head_dim");
  } else if (family.head_dim != 0) {
    if (root.contains("head_dim")) bad("head_dim is null, expected a whole number");
    c.head_dim = family.head_dim;
  } else {
    if (c.n_heads <= 0 || c.dim % c.n_heads != 0) {
      bad(str("hidden_size ", c.dim, " is not a multiple of num_attention_heads ", c.n_heads));
    }
    c.head_dim = c.dim / c.n_heads;
  }
  c.norm_eps = double_or(root, "rms_norm_eps", 1e-6);
}

void read_flags(const json& root, ModelConfig& c) {
  c.tied_embeddings = bool_or(root, "tie_word_embeddings", false);
  const bool biased = c.architecture == Architecture::llama || c.architecture == Architecture::qwen3;
  if (biased) c.qkv_bias = c.o_bias = bool_or(root, "attention_bias", false);
  if (c.architecture == Architecture::qwen2) c.qkv_bias = true;
  if (c.architecture == Architecture::llama) c.mlp_bias = bool_or(root, "mlp_bias", false);
  c.qk_norm = c.architecture == Architecture::qwen3;
  const json* act = find(root, "hidden_act");
  if (act != nullptr && *act != "silu" && *act != "swish")
    unsupported(str("hidden_act ", brief(*act), " is not supported (silu is)"));
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (const json* quantised = find(root, key)) {
      const json* method = quantised->is_object() ? find(*quantised, "quant_method") : nullptr;
      unsupported(str(key, " (quant_method ", method != nullptr ? brief(*method) : "unknown", ") is not supported"));
    }
  }
  for (const char* key : {"dtype", "torch_dtype"}) {
    const json* value = find(root, key);
    if (value == nullptr) continue;
    std::string name = string_of(*value, key);
    if (name.starts_with("torch.")) name.erase(0, 6);
    if (name == "bfloat16")
      c.dtype = DType::bf16;
    else if (name == "float16" || name == "half")
      c.dtype = DType::f16;
    else if (name == "float32" || name == "float")
      c.dtype = DType::f32;
    else if (name == "float64" || name == "double")
      c.dtype = DType::f64;
    else
      unsupported(str(key, " '", name, "' is not supported (float32, bfloat16, float16 and float64 are)"));
    break;
  }
}

/// Attention here sees the whole context: a window that would hide a part of it is refused.
void check_sliding_window(const json& root, const ModelConfig& c) {
  if (c.architecture == Architecture::llama) return;
  const auto it = root.find("sliding_window");
  int window = 4096;  // transformers' default for all three families
  if (it != root.end()) window = it->is_null() ? 0 : as_int(*it, "sliding_window");
  const bool shorter = window > 0 && window < c.max_context;
  bool effective = shorter;
  if (c.architecture != Architecture::mistral) {
    effective =
        shorter && bool_or(root, "use_sliding_window", false) && int_or(root, "max_window_layers", 28) < c.n_layers;
    if (const json* types = find(root, "layer_types")) {
      effective = false;
      if (!types->is_array()) bad(str("layer_types is ", brief(*types), ", expected a list"));
      for (const json& type : *types) {
        if (type == "sliding_attention")
          effective = effective || shorter;
        else if (type != "full_attention")
          unsupported(str("layer type ", brief(type), " is not supported (full_attention is)"));
      }
    }
  }
  if (effective) {
    unsupported(str("a sliding window of ", window, " tokens, shorter than the context of ", c.max_context,
                    ", is not supported"));
  }
}

double positive(const json& rope, const char* key) {
  if (!rope.contains(key)) bad(str("rope scaling has no ", key));
  const double value = double_or(rope, key, 0);
  if (!(value > 0) || !std::isfinite(value))
    bad(str("rope scaling: ", key, " is ", value, ", expected a positive number"));
  return value;
}

/// What one of the two spellings says, into rope_theta and rope_scaling.
void read_rope_from(const json& root, const json* rope, ModelConfig& c) {
  if (!rope->is_object()) bad(str("rope parameters are ", brief(*rope), ", expected an object"));
  for (const auto& item : rope->items()) {
    if (item.value().is_object())
      unsupported(str("rope parameters of their own for '", item.key(), "' are not supported"));
  }
  c.rope_theta = double_or(*rope, "rope_theta", double_or(root, "rope_theta", 10000.0));
  if (const double outside = double_or(root, "rope_theta", c.rope_theta); outside != c.rope_theta) {
    bad(str("rope_theta is ", outside, " and, among the rope parameters, ", c.rope_theta));
  }
  for (const json* place : {rope, &root}) {
    if (double_or(*place, "partial_rotary_factor", 1.0) != 1.0)
      unsupported("a partial_rotary_factor other than 1 is not supported");
  }
  std::string type = "default";
  if (const json* named = find(*rope, "rope_type"))
    type = string_of(*named, "rope_type");
  else if (const json* old = find(*rope, "type"))
    type = string_of(*old, "type");
  if (type == "default") return;
  RopeScaling& scaling = c.rope_scaling;
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
    scaling.factor = positive(*rope, "factor");
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::llama3;
    scaling.factor = positive(*rope, "factor");
    scaling.low_freq_factor = positive(*rope, "low_freq_factor");
    scaling.high_freq_factor = positive(*rope, "high_freq_factor");
    const int inside = int_or(*rope, "original_max_position_embeddings", c.max_context);
    scaling.original_max_position = int_or(root, "original_max_position_embeddings", inside);
    if (scaling.original_max_position <= 0)
      bad(str("original_max_position_embeddings is ", scaling.original_max_position));
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      bad(str("rope scaling: high_freq_factor ", scaling.high_freq_factor, " is not above low_freq_factor ",
              scaling.low_freq_factor));
    }
  } else {
    unsupported(str("rope type '", type, "' is not supported (default, linear and llama3 are)"));
  }
}

/// `rope_scaling` is the hub's spelling, `rope_parameters` that of transformers 5. A file may have both if they say the
/// same.
void read_rope(const json& root, ModelConfig& c) {
  static const json kNone = json::object();
  const json* hub = find(root, "rope_scaling");
  const json* other = find(root, "rope_parameters");
  if (hub != nullptr && hub->empty()) hub = nullptr;
  read_rope_from(root, hub != nullptr ? hub : other != nullptr ? other : &kNone, c);
  if (hub == nullptr || other == nullptr || other->empty()) return;
  ModelConfig second = c;
  second.rope_scaling = {};
  read_rope_from(root, other, second);
  if (second.rope_theta != c.rope_theta || !(second.rope_scaling == c.rope_scaling))
    bad(str("rope_scaling ", brief(*hub), " and rope_parameters ", brief(*other), " contradict each other"));
}

/// An id, a list of ids, or null.
std::vector<int> token_ids(const json& value, const char* key, int vocab_size, const char* file = kFile) {
  if (value.is_null()) return {};
  std::vector<int> ids;
  const auto add = [&](const json& id) {
    ids.push_back(as_int(id, key));
    if (ids.back() >= 0 && ids.back() < vocab_size) return;
    throw Error(ErrorKind::bad_input,
                str(file, ": ", key, " is ", ids.back(), ", expected a token id below vocab_size ", vocab_size));
  };
  if (value.is_array()) {
    for (const json& id : value) add(id);
  } else {
    add(value);
  }
  return ids;
}

}  // namespace

std::string_view to_string(Architecture architecture) noexcept {
  return kFamilies[static_cast<size_t>(architecture)].model_type;
}

ModelConfig parse_hf_config(std::string_view text) {
  const json root = parse_json_strictly(text, kFile);
  if (!root.is_object()) bad("not an object");
  const Family& family = family_of(root);
  ModelConfig c;
  c.architecture = family.architecture;
  c.hf_class = family.hf_class;
  read_sizes(root, family, c);
  read_flags(root, c);
  validate(c);  // sizes first: what follows compares with them
  check_sliding_window(root, c);
  read_rope(root, c);
  const auto eos = root.find("eos_token_id");
  if (eos != root.end())
    c.eos_token_ids = token_ids(*eos, "eos_token_id", c.vocab_size);
  else if (family.eos >= 0)
    c.eos_token_ids = {family.eos};
  const auto bos = root.find("bos_token_id");
  if (bos == root.end()) {
    if (family.bos >= 0) c.bos_token_id = family.bos;
  } else if (const auto ids = token_ids(*bos, "bos_token_id", c.vocab_size); !ids.empty()) {
    c.bos_token_id = ids.front();
  }
  validate(c);
  return c;
}

void validate(const ModelConfig& c) {
  const auto within = [](const char* what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      throw Error(ErrorKind::bad_input, str("model config: ", what, " is ", value, ", expected ", low, " to ", high));
    }
  };
  // A few times what the largest published models of these families have (Llama 3.1 405B: 126 layers, 16384 wide, 53248
  // hidden).
  within("the number of layers", c.n_layers, 1, 4096);
  within("hidden_size", c.dim, 1, 1 << 18);
  within("intermediate_size", c.hidden_dim, 1, 1 << 22);
  within("the number of heads", c.n_heads, 1, 1 << 14);
  within("the number of KV heads", c.n_kv_heads, 1, c.n_heads);
  within("head_dim", c.head_dim, 2, 1 << 12);
  within("vocab_size", c.vocab_size, 1, 1 << 19);  // whose sampling weights add up in 64 bits
  within("max_position_embeddings", c.max_context, 1, 1 << 30);
  const auto fail = [](const std::string& what) { throw Error(ErrorKind::bad_input, "model config: " + what); };
  if (c.n_heads % c.n_kv_heads != 0) fail(str(c.n_heads, " heads are not a multiple of ", c.n_kv_heads, " KV heads"));
  if (c.head_dim % 2 != 0) fail(str("head_dim ", c.head_dim, " is odd: rotary embedding needs pairs"));
  if (!(c.norm_eps >= 0 && c.norm_eps < 1)) fail(str("rms_norm_eps is ", c.norm_eps, ", expected 0 to 1"));
  if (!(c.rope_theta > 0 && c.rope_theta < 1e30))
    fail(str("rope_theta is ", c.rope_theta, ", expected a positive number"));
  if (!(c.rope_scaling.factor > 0 && c.rope_scaling.factor < 1e30)) fail(str("rope factor is ", c.rope_scaling.factor));
}

std::vector<double> rope_inverse_frequencies(const ModelConfig& c) {
  std::vector<double> inverse(static_cast<size_t>(c.head_dim / 2));
  const RopeScaling& s = c.rope_scaling;
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double plain = 1.0 / std::pow(c.rope_theta, 2.0 * static_cast<double>(i) / c.head_dim);
    inverse[i] = plain;
    if (s.kind == RopeScaling::Kind::linear) inverse[i] = plain / s.factor;
    if (s.kind != RopeScaling::Kind::llama3) continue;
    // Llama 3.1: long wavelengths are stretched by `factor`, short ones are not, those between are blended.
    const auto context = static_cast<double>(s.original_max_position);
    const double wavelength = 2.0 * std::numbers::pi / plain;
    if (wavelength < context / s.high_freq_factor) continue;
    if (wavelength > context / s.low_freq_factor) {
      inverse[i] = plain / s.factor;
    } else {
      const double smooth = (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      inverse[i] = (1 - smooth) * plain / s.factor + smooth * plain;
    }
  }
  return inverse;
}

std::vector<int> stop_token_ids(const ModelConfig& config, std::string_view generation_config_json) {
  std::vector<int> ids = config.eos_token_ids;
  if (!generation_config_json.empty()) {
    const json root = parse_json_strictly(generation_config_json, "generation_config.json");
    if (!root.is_object()) throw Error(ErrorKind::bad_input, "generation_config.json: not an object");
    if (const json* eos = find(root, "eos_token_id")) {
      const auto more = token_ids(*eos, "eos_token_id", config.vocab_size, "generation_config.json");
      ids.insert(ids.end(), more.begin(), more.end());
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace firstlight
