// SPDX-License-Identifier: Apache-2.0
#include "firstlight/model/llama_weights.h"

#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/device/copy.h"

namespace firstlight {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += str(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

/// A vector is one column of rows: biases and norms stack like matrices.
Weight view(const Tensor& tensor) {
  return {tensor.data, tensor.dtype, tensor.shape[0], tensor.shape.size() == 2 ? tensor.shape[1] : 1};
}

}  // namespace

LlamaWeights::LlamaWeights(const ModelConfig& config, RankWeights& weights)
    : config_(config), weights_(&weights), layers_(static_cast<size_t>(config.n_layers)) {
  check_table();
}

void LlamaWeights::check_table() const {
  for (const ModelTensor& expected : model_tensors(config_)) {
    const Tensor& found = tensor(expected.name);
    const std::vector<int64_t> shape = slice_of(config_, expected, weights_->tp, weights_->rank).shape();
    if (found.shape != shape) {
      throw Error(ErrorKind::bug, str(expected.name, ": shape ", shape_text(found.shape), " in memory, rank ",
                                      weights_->rank, " of ", weights_->tp, " needs ", shape_text(shape)));
    }
    if (found.dtype != DType::f32 && found.dtype != DType::bf16) {
      throw Error(ErrorKind::unsupported,
                  str(expected.name, ": ", to_string(found.dtype), " in memory; weights may be f32 or bf16"));
    }
  }
}

const Tensor& LlamaWeights::tensor(std::string_view name) const {
  const auto found = weights_->tensors.find(name);
  if (found == weights_->tensors.end()) {
    throw Error(ErrorKind::bug, str("rank ", weights_->rank, " of ", weights_->tp, " has no tensor ", name));
  }
  return found->second;
}

Weight LlamaWeights::weight(std::string_view name) const { return view(tensor(name)); }

Weight LlamaWeights::stacked(const std::string& prefix, std::initializer_list<std::string_view> names,
                             std::string_view suffix) {
  std::vector<const Tensor*> parts;
  for (const std::string_view name : names) parts.push_back(&tensor(str(prefix, name, suffix)));
  Weight whole = view(*parts[0]);
  uint64_t size = parts[0]->size_bytes;
  bool neighbours = true;
  for (size_t i = 1; i < parts.size(); ++i) {
    if (parts[i]->dtype != whole.dtype) {
      throw Error(ErrorKind::unsupported, str(parts[i]->name, ": ", to_string(parts[i]->dtype), ", but ",
                                              parts[0]->name, " is ", to_string(whole.dtype)));
    }
    neighbours = neighbours && parts[i]->data == parts[0]->data + size;
    whole.rows += parts[i]->shape[0];
    size += parts[i]->size_bytes;
  }
  if (neighbours) return whole;
  Buffer copy(weights_->arena.device(), size);
  std::byte* to = copy.data();
  for (const Tensor* part : parts) {
    firstlight::copy(to, copy.device(), part->data, copy.device(), part->size_bytes);
    to += part->size_bytes;
  }
  whole.data = copy.data();
  copies_.push_back(std::move(copy));
  return whole;
}

void LlamaWeights::bind_layer(int i) {
  const std::string prefix = str("model.layers.", i, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  LlamaLayer& layer = layers_[static_cast<size_t>(i)];
  layer.attention_norm = weight(prefix + "input_layernorm.weight");
  layer.qkv = stacked(attention, {"q_proj", "k_proj", "v_proj"}, ".weight");
  if (config_.qkv_bias) layer.qkv_bias = stacked(attention, {"q_proj", "k_proj", "v_proj"}, ".bias");
  if (config_.qk_norm) {
    layer.q_norm = weight(attention + "q_norm.weight");
    layer.k_norm = weight(attention + "k_norm.weight");
  }
  layer.o = weight(attention + "o_proj.weight");
  if (config_.o_bias) layer.o_bias = weight(attention + "o_proj.bias");
  layer.mlp_norm = weight(prefix + "post_attention_layernorm.weight");
  layer.gate_up = stacked(mlp, {"gate_proj", "up_proj"}, ".weight");
  if (config_.mlp_bias) layer.gate_up_bias = stacked(mlp, {"gate_proj", "up_proj"}, ".bias");
  layer.down = weight(mlp + "down_proj.weight");
  if (config_.mlp_bias) layer.down_bias = weight(mlp + "down_proj.bias");
}

const Weight& LlamaWeights::embedding() {
  if (embedding_.data == nullptr) {
    weights_->ready->wait(0);
    embedding_ = weight("model.embed_tokens.weight");
  }
  return embedding_;
}

const LlamaLayer& LlamaWeights::layer(int i) {
  for (; n_bound_ <= i; ++n_bound_) {
    weights_->ready->wait(0);  // small tensors of every layer come with the first gate
    weights_->ready->wait(1 + n_bound_);
    bind_layer(n_bound_);
  }
  return layers_[static_cast<size_t>(i)];
}

void LlamaWeights::bind_head() {
  if (final_norm_.data != nullptr) return;
  weights_->ready->wait(0);
  weights_->ready->wait(1 + config_.n_layers);
  lm_head_ = weight(config_.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  lm_head_.rows = std::clamp<int64_t>(config_.vocab_size - weights_->vocab_begin, 0, lm_head_.rows);
  final_norm_ = weight("model.norm.weight");
}

const Weight& LlamaWeights::final_norm() {
  bind_head();
  return final_norm_;
}

const Weight& LlamaWeights::lm_head() {
  bind_head();
  return lm_head_;
}

}  // namespace firstlight
