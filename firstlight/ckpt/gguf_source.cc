// SPDX-License-Identifier: Apache-2.0
// llama.cpp rotates neighbouring pairs where transformers rotates halves, so its converter reorders the rows of q and k
// of `llama` models: row 2j + k of a head in the GGUF is row k · head_dim / 2 + j of the original. Here they go back.
#include "firstlight/ckpt/gguf_source.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/gguf_config.h"
#include "firstlight/ckpt/gguf_tokenizer.h"
#include "firstlight/ckpt/hf_source.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/source_sample.h"
#include "firstlight/quant/convert.h"

namespace firstlight {

namespace {

constexpr uint64_t kReadBytes = 1u << 20;  // of blocks decoded at a time
constexpr std::string_view kRopeFactors = "rope_freqs.weight";

constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kLayerNames{{
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

DType plain_dtype(const GgmlTypeInfo& type) {
  switch (static_cast<GgmlType>(type.id)) {
    case GgmlType::f16:
      return DType::f16;
    case GgmlType::bf16:
      return DType::bf16;
    default:
      return DType::f32;
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += str(i > 0 ? ", " : "", shape[i]);
  return out + "]";
}

/// n elements of stored type as `as`, which is f32, bf16 or the plain stored type.
void decode_as(const GgmlTypeInfo& type, const std::byte* in, int64_t n, DType as, std::byte* out) {
  if (type.block_elements == 1) return convert(plain_dtype(type), in, n, as, out);
  // Rows are multiples of 32 elements and `out` comes from an allocator or starts a row: aligned for both types.
  if (as == DType::f32) return decode_ggml(type, in, n, reinterpret_cast<float*>(out));
  decode_ggml_to_bf16(type, in, n, reinterpret_cast<uint16_t*>(out));
}

/// Where row `row` of the original stands in the GGUF.
int64_t permuted_row(int64_t row, int64_t head_dim) {
  const int64_t in_head = row % head_dim, half = head_dim / 2;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

}  // namespace

std::string hf_name_of_gguf(std::string_view name) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  if (!name.starts_with("blk.")) return {};
  const size_t number_end = name.find('.', 4), dot = name.rfind('.');
  if (number_end == name.npos || dot <= number_end || number_end == 4) return {};
  const std::string_view number = name.substr(4, number_end - 4), suffix = name.substr(dot);
  const bool canonical = std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
                         (number == "0" || number[0] != '0');
  if (!canonical || (suffix != ".weight" && suffix != ".bias")) return {};
  const std::string_view middle = name.substr(number_end + 1, dot - number_end - 1);
  for (const auto& [gguf, hf] : kLayerNames) {
    if (gguf == middle) return str("model.layers.", number, ".", hf, suffix);
  }
  return {};
}

GgufSource::GgufSource(const fs::path& path) : path_(path.native()), gguf_(Gguf::open(path)) {
  config_ = gguf_model_config(gguf_->metadata(), gguf_->tensors(), rope_factors());
  list_tensors();
}

std::vector<float> GgufSource::rope_factors() const {
  const auto& tensors = gguf_->tensors();
  const auto it =
      std::find_if(tensors.begin(), tensors.end(), [](const GgufTensor& t) { return t.name == kRopeFactors; });
  if (it == tensors.end()) return {};
  if (it->shape.size() != 1 || it->shape[0] > 4096 || it->type->id != static_cast<uint32_t>(GgmlType::f32)) {
    throw Error(ErrorKind::bad_input, str(path_, ": tensor '", kRopeFactors, "' of ", it->type->name, " ",
                                          shape_text(it->shape), ", expected a short list of F32"));
  }
  std::vector<float> factors(static_cast<size_t>(it->shape[0]));
  gguf_->file(it->part)->read(it->offset, std::as_writable_bytes(std::span(factors)));
  return factors;
}

void GgufSource::list_tensors() {
  const bool permutes = config_.architecture == Architecture::llama;
  for (const GgufTensor& tensor : gguf_->tensors()) {
    if (tensor.name == kRopeFactors) continue;
    const std::string name = hf_name_of_gguf(tensor.name);
    const auto fail = [&](ErrorKind kind, const std::string& what) {
      throw Error(kind, str(gguf_->file(tensor.part)->path(), ": tensor '", tensor.name.substr(0, 200), "' ", what));
    };
    if (name.empty()) fail(ErrorKind::unsupported, str("is not one that a ", config_.hf_class, " has"));
    if (!tensor.type->decodable)
      fail(ErrorKind::unsupported, str("is of type ", tensor.type->name, ", which is not decoded"));
    const bool is_q_or_k = name.find(".self_attn.q_proj.") != name.npos || name.find(".self_attn.k_proj.") != name.npos;
    stored_.emplace(name, Stored{&tensor, permutes && is_q_or_k});
  }
  for (const ModelTensor& expected : model_tensors(config_)) {
    const auto found = stored_.find(expected.name);
    if (found == stored_.end())
      throw Error(ErrorKind::bad_input,
                  str(path_, ": tensor '", expected.name, "' (by its Hugging Face name) is not in the GGUF"));
    const GgufTensor& tensor = *found->second.tensor;
    if (tensor.shape != expected.shape) {
      throw Error(ErrorKind::bad_input,
                  str(gguf_->file(tensor.part)->path(), ": tensor '", tensor.name, "': shape ",
                      shape_text(tensor.shape), ", the metadata says ", shape_text(expected.shape)));
    }
    tensors_.push_back({expected.name, expected.shape, std::string(tensor.type->name), plain_dtype(*tensor.type),
                        tensor.type->block_elements > 1, tensor.bytes});
  }
  if (tensors_.size() == stored_.size()) return;
  for (const auto& [name, stored] : stored_) {
    const bool listed =
        std::any_of(tensors_.begin(), tensors_.end(), [&](const SourceTensor& t) { return t.name == name; });
    if (!listed) {
      throw Error(ErrorKind::unsupported,
                  str(gguf_->file(stored.tensor->part)->path(), ": tensor '", stored.tensor->name,
                      "' is not one that a ", config_.hf_class, " with this metadata has"));
    }
  }
}

const std::vector<AuxFile>& GgufSource::aux_files() const {
  // Not std::call_once: in a program with libgcc inside, an exception through glibc's pthread_once aborts.
  const std::lock_guard lock(aux_mutex_);
  if (!aux_.empty()) return aux_;
  const GgufMetadata& metadata = gguf_->metadata();
  std::vector<AuxFile> files;
  files.push_back({"config.json", make_config_json(config_, metadata)});
  files.push_back({"generation_config.json", make_generation_config_json(config_, metadata)});
  if (metadata.find("tokenizer.ggml.model") != nullptr) {  // a GGUF for tests may have none
    files.push_back({"tokenizer.json", make_tokenizer_json(metadata)});
    files.push_back({"tokenizer_config.json", make_tokenizer_config_json(metadata, config_.max_context)});
  }
  if (const auto text = metadata.text("tokenizer.chat_template"); text && !text->empty()) {
    files.push_back({"chat_template.jinja", std::string(*text)});
  }
  aux_ = std::move(files);
  return aux_;
}

std::string GgufSource::fingerprint() const {
  Xxh3_128 hash;
  for (size_t i = 0; i < gguf_->n_parts(); ++i) {
    const auto& file = gguf_->file(static_cast<int>(i));
    const std::string head = str(i, '\n', file->size(), '\n');  // not its name: a copy is the same model
    hash.update(std::as_bytes(std::span(head)));
    hash.update(std::as_bytes(std::span(gguf_->header_bytes(static_cast<int>(i)))));
  }
  for (const GgufTensor& tensor : gguf_->tensors())
    hash_sample(hash, *gguf_->file(tensor.part), tensor.offset, tensor.bytes);
  return str("gguf:", hash.hex());
}

void GgufSource::read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                           std::span<std::byte> out) const {
  const RowRange range = check_rows(tensor, row_begin, row_end, as, out.size());
  const auto found = stored_.find(tensor.name);
  if (found == stored_.end()) throw Error(ErrorKind::bug, str("tensor '", tensor.name, "' is not of this source"));
  const GgufTensor& stored = *found->second.tensor;
  const auto& file = gguf_->file(stored.part);
  const bool flat = tensor.shape.size() == 1;
  // A permuted list (a bias) is read as rows of one element.
  const bool permuted = found->second.permuted;
  const int64_t columns = flat && permuted ? 1 : range.columns;
  const int64_t begin = flat && permuted ? 0 : row_begin, end = flat && permuted ? range.elements : row_end;
  if (begin == end) return;
  if (columns % stored.type->block_elements != 0) {
    throw Error(ErrorKind::unsupported, str(file->path(), ": tensor '", stored.name, "': a permuted list of ",
                                            stored.type->name, " is not supported"));
  }
  const uint64_t row_bytes = static_cast<uint64_t>(columns) / stored.type->block_elements * stored.type->block_bytes;
  const uint64_t out_row_bytes = static_cast<uint64_t>(columns) * size_of(as);
  const int64_t unit = permuted ? config_.head_dim : 1;  // permuted rows stay within a head: whole heads are read
  const int64_t step = std::max<int64_t>(1, static_cast<int64_t>(kReadBytes / row_bytes) / unit) * unit;
  std::vector<std::byte> raw;
  for (int64_t at = begin / unit * unit; at < end; at += step) {
    const int64_t n = std::min(step, (end - at + unit - 1) / unit * unit);
    raw.resize(static_cast<size_t>(n) * row_bytes);
    file->read(stored.offset + static_cast<uint64_t>(at) * row_bytes, raw);
    if (!permuted) {
      decode_as(*stored.type, raw.data(), n * columns, as,
                out.data() + static_cast<uint64_t>(at - begin) * out_row_bytes);
      continue;
    }
    for (int64_t row = std::max(at, begin); row < std::min(at + n, end); ++row) {
      const auto from = static_cast<uint64_t>(permuted_row(row, config_.head_dim) - at);
      decode_as(*stored.type, raw.data() + from * row_bytes, columns, as,
                out.data() + static_cast<uint64_t>(row - begin) * out_row_bytes);
    }
  }
  file->check_unchanged();
}

}  // namespace firstlight
