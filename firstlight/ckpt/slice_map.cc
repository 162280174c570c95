// SPDX-License-Identifier: Apache-2.0
// The table of docs/rank-checkpoint.md §2 as code: every tensor of the Llama family, and what each rank holds of it.
#include "firstlight/ckpt/slice_map.h"

#include <map>
#include <string_view>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

/// Appends the tensors of one layer.
void add_layer(const ModelConfig& c, int layer, std::vector<ModelTensor>& out) {
  const std::string prefix = str("model.layers.", layer, ".");
  const auto add = [&](const char* name, std::vector<int64_t> shape, SliceKind slice) {
    out.push_back({prefix + name, std::move(shape), slice, 1 + layer});
  };
  const int64_t dim = c.dim, hidden = c.hidden_dim;
  const int64_t q_dim = int64_t{c.n_heads} * c.head_dim, kv_dim = int64_t{c.n_kv_heads} * c.head_dim;

  add("input_layernorm.weight", {dim}, SliceKind::replicated);
  add("self_attn.q_proj.weight", {q_dim, dim}, SliceKind::q_rows);
  add("self_attn.k_proj.weight", {kv_dim, dim}, SliceKind::kv_rows);
  add("self_attn.v_proj.weight", {kv_dim, dim}, SliceKind::kv_rows);
  if (c.qkv_bias) {
    add("self_attn.q_proj.bias", {q_dim}, SliceKind::q_rows);
    add("self_attn.k_proj.bias", {kv_dim}, SliceKind::kv_rows);
    add("self_attn.v_proj.bias", {kv_dim}, SliceKind::kv_rows);
  }
  if (c.qk_norm) {
    add("self_attn.q_norm.weight", {c.head_dim}, SliceKind::replicated);
    add("self_attn.k_norm.weight", {c.head_dim}, SliceKind::replicated);
  }
  add("self_attn.o_proj.weight", {dim, q_dim}, SliceKind::columns);
  if (c.o_bias) add("self_attn.o_proj.bias", {dim}, SliceKind::replicated);
  add("post_attention_layernorm.weight", {dim}, SliceKind::replicated);
  add("mlp.gate_proj.weight", {hidden, dim}, SliceKind::rows);
  add("mlp.up_proj.weight", {hidden, dim}, SliceKind::rows);
  if (c.mlp_bias) {
    add("mlp.gate_proj.bias", {hidden}, SliceKind::rows);
    add("mlp.up_proj.bias", {hidden}, SliceKind::rows);
  }
  add("mlp.down_proj.weight", {dim, hidden}, SliceKind::columns);
  if (c.mlp_bias) add("mlp.down_proj.bias", {dim}, SliceKind::replicated);
}

/// Rows [begin, begin + n) that `rank` holds.
struct Rows {
  int64_t begin = 0, n = 0;
};

Rows rows_of(const ModelConfig& c, const ModelTensor& tensor, int tp, int rank) {
  const int64_t whole = tensor.shape[0];
  switch (tensor.slice) {
    case SliceKind::q_rows: {
      const int64_t n = int64_t{c.n_heads} / tp * c.head_dim;
      return {rank * n, n};
    }
    case SliceKind::kv_rows: {
      // More ranks than heads: each rank has one, and its query heads all belong to that one, because tp is a
      // multiple of n_kv_heads.
      const int64_t n = tp <= c.n_kv_heads ? c.n_kv_heads / tp : 1;
      const int64_t first = int64_t{rank} * c.n_kv_heads / tp;
      return {first * c.head_dim, n * c.head_dim};
    }
    case SliceKind::rows:
      return {rank * (whole / tp), whole / tp};
    case SliceKind::vocab_rows: {
      const int64_t n = vocab_rows_per_rank(c, tp);
      return {rank * n, n};
    }
    case SliceKind::columns:
    case SliceKind::replicated:
      return {0, whole};
  }
  throw Error(ErrorKind::bug, str("tensor '", tensor.name, "' has no slice kind"));
}

}  // namespace

std::vector<ModelTensor> model_tensors(const ModelConfig& config) {
  switch (config.architecture) {
    case Architecture::llama:
    case Architecture::mistral:
    case Architecture::qwen2:
    case Architecture::qwen3:
      break;
    default:
      throw Error(ErrorKind::unsupported, "no slice map for this architecture");
  }
  std::vector<ModelTensor> out;
  const int64_t vocab = config.vocab_size, dim = config.dim;
  out.push_back({"model.embed_tokens.weight", {vocab, dim}, SliceKind::vocab_rows, 0});
  for (int layer = 0; layer < config.n_layers; ++layer) add_layer(config, layer, out);
  const int last_gate = config.n_layers + 1;
  out.push_back({"model.norm.weight", {dim}, SliceKind::replicated, last_gate});
  if (!config.tied_embeddings) out.push_back({"lm_head.weight", {vocab, dim}, SliceKind::vocab_rows, last_gate});
  return out;
}

std::vector<int64_t> Slice::shape() const {
  if (n_dims == 1) return {row_end - row_begin};
  return {row_end - row_begin, col_end - col_begin};
}

Slice slice_of(const ModelConfig& config, const ModelTensor& tensor, int tp, int rank) {
  if (tp < 1 || rank < 0 || rank >= tp) throw Error(ErrorKind::bug, str("rank ", rank, " of tp ", tp));
  const Rows rows = rows_of(config, tensor, tp, rank);
  Slice slice;
  slice.n_dims = static_cast<int>(tensor.shape.size());
  slice.row_begin = rows.begin;
  slice.row_end = rows.begin + rows.n;
  const int64_t n_cols = slice.n_dims == 1 ? 1 : tensor.shape[1];
  const bool by_columns = tensor.slice == SliceKind::columns;
  slice.col_begin = by_columns ? n_cols / tp * rank : 0;
  slice.col_end = by_columns ? n_cols / tp * (rank + 1) : n_cols;
  return slice;
}

void require_one_type_a_group(const ModelConfig& config, const std::function<DType(const std::string& name)>& type_of) {
  std::map<std::string, std::pair<std::string, DType>> groups;  // "…self_attn.weight" → its first tensor and type
  for (const ModelTensor& tensor : model_tensors(config)) {
    const std::string& name = tensor.name;
    const size_t kind = name.rfind('.'), projection = kind == name.npos ? kind : name.rfind('.', kind - 1);
    if (projection == name.npos) continue;
    const std::string_view which = std::string_view(name).substr(projection + 1, kind - projection - 1);
    if (which != "q_proj" && which != "k_proj" && which != "v_proj" && which != "gate_proj" && which != "up_proj")
      continue;
    const DType type = type_of(name);
    const auto [first, is_new] =
        groups.try_emplace(name.substr(0, projection) + name.substr(kind), std::pair(name, type));
    if (is_new || first->second.second == type) continue;
    throw Error(ErrorKind::unsupported,
                str("tensor '", name, "' is ", to_string(type), ", but '", first->second.first, "' is ",
                    to_string(first->second.second),
                    ": they are read as one and must be of one type (choose --dtype bf16 or --dtype f32)"));
  }
}

bool tp_is_possible(const ModelConfig& config, int tp) {
  if (tp < 1 || config.n_heads % tp != 0 || config.hidden_dim % tp != 0) return false;
  return config.n_kv_heads % tp == 0 || tp % config.n_kv_heads == 0;
}

std::vector<int> possible_tps(const ModelConfig& config, int at_most) {
  std::vector<int> out;
  for (int tp = 1; tp <= at_most && tp <= config.n_heads; ++tp) {
    if (tp_is_possible(config, tp)) out.push_back(tp);
  }
  return out;
}

void require_tp(const ModelConfig& config, int tp) {
  if (tp_is_possible(config, tp)) return;
  std::string possible;
  for (const int t : possible_tps(config)) possible += str(possible.empty() ? "" : ", ", t);
  std::string why;
  if (tp < 1) {
    why = str("tp ", tp, " is not a number of ranks");
  } else if (config.n_heads % tp != 0) {
    why = str("tp ", tp, " does not divide the model's ", config.n_heads, " attention heads");
  } else if (config.hidden_dim % tp != 0) {
    why = str("tp ", tp, " does not divide the model's intermediate size ", config.hidden_dim);
  } else {
    why = str("tp ", tp, " neither divides the model's ", config.n_kv_heads, " key/value heads nor is divided by them");
  }
  throw Error(ErrorKind::bad_input, str(why, "; possible: ", possible));
}

int64_t vocab_rows_per_rank(const ModelConfig& config, int tp) { return (int64_t{config.vocab_size} + tp - 1) / tp; }

}  // namespace firstlight
