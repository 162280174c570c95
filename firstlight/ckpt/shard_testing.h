// SPDX-License-Identifier: Apache-2.0
// For tests: a source that lives in memory, small models of every family, and the inverse of the cut, written from
// docs/rank-checkpoint.md and tensor names alone.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/slice_map.h"

namespace firstlight::testing_shard {

using Json = nlohmann::json;

/// A directory that goes away with the object. In memory where there is /dev/shm: these tests make thousands of files.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(bool in_memory = true) {
    const bool shm = in_memory && ::access("/dev/shm", W_OK) == 0;
    std::string name = (shm ? std::string("/dev/shm/") : ::testing::TempDir()) + "firstlight-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
    path_ = name;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct Family {
  const char* name;
  const char* config;
  std::vector<int> tps;  ///< all that work
};

/// Sizes are such that page-multiple tensors and tails, padded vocabularies and repeated heads all occur.
inline const std::vector<Family>& families() {
  static const std::vector<Family> all{
      {"llama",
       R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":96,"intermediate_size":192,"num_hidden_layers":2,"num_attention_heads":6,"num_key_value_heads":2,"vocab_size":259,"max_position_embeddings":128,"rms_norm_eps":1e-05,"rope_theta":10000.0,"hidden_act":"silu","tie_word_embeddings":false,"torch_dtype":"bfloat16"})",
       {1, 2, 6}},
      {"llama32_tied",
       R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":128,"intermediate_size":256,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,"vocab_size":257,"max_position_embeddings":131072,"rms_norm_eps":1e-05,"rope_theta":500000.0,"rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},"hidden_act":"silu","tie_word_embeddings":true,"torch_dtype":"bfloat16"})",
       {1, 2, 4}},
      {"llama_biases",
       R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":192,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":4,"vocab_size":256,"max_position_embeddings":128,"rms_norm_eps":1e-05,"hidden_act":"silu","attention_bias":true,"mlp_bias":true,"tie_word_embeddings":false,"torch_dtype":"float32"})",
       {1, 2, 4}},
      {"smollm2",
       R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":144,"intermediate_size":288,"num_hidden_layers":2,"num_attention_heads":9,"num_key_value_heads":3,"vocab_size":256,"max_position_embeddings":128,"rms_norm_eps":1e-05,"hidden_act":"silu","tie_word_embeddings":true,"torch_dtype":"bfloat16"})",
       {1, 3, 9}},
      {"mistral",
       R"({"model_type":"mistral","architectures":["MistralForCausalLM"],"hidden_size":128,"intermediate_size":256,"num_hidden_layers":3,"num_attention_heads":8,"num_key_value_heads":2,"vocab_size":300,"max_position_embeddings":128,"rms_norm_eps":1e-05,"rope_theta":1000000.0,"sliding_window":null,"hidden_act":"silu","tie_word_embeddings":false,"torch_dtype":"bfloat16"})",
       {1, 2, 4, 8}},
      {"qwen2",
       R"({"model_type":"qwen2","architectures":["Qwen2ForCausalLM"],"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":301,"max_position_embeddings":128,"rms_norm_eps":1e-06,"rope_theta":1000000.0,"use_sliding_window":false,"hidden_act":"silu","tie_word_embeddings":true,"dtype":"bfloat16"})",
       {1, 2, 4}},
      {"qwen3",
       R"({"model_type":"qwen3","architectures":["Qwen3ForCausalLM"],"hidden_size":64,"intermediate_size":192,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,"vocab_size":263,"max_position_embeddings":128,"rms_norm_eps":1e-06,"rope_theta":1000000.0,"attention_bias":false,"use_sliding_window":false,"hidden_act":"silu","tie_word_embeddings":false,"dtype":"bfloat16"})",
       {1, 2, 4}},
  };
  return all;
}
inline const Family& family(const std::string& name) {
  for (const Family& one : families()) {
    if (name == one.name) return one;
  }
  throw std::runtime_error("no family " + name);
}

/// Random weights that bf16 holds exactly, so that the stored type of each tensor may be chosen freely.
class MemorySource : public Source {
 public:
  explicit MemorySource(const std::string& config_json, DType stored = DType::bf16, uint64_t seed = 1)
      : config_(parse_hf_config(config_json)), stored_(stored), seed_(seed) {
    aux_ = {{"config.json", config_json},
            {"generation_config.json", "{\"eos_token_id\": 2}\n"},
            {"tokenizer.json", "{\"version\": \"1.0\"}\n"}};
    std::mt19937_64 random(seed);
    for (const ModelTensor& tensor : model_tensors(config_)) {
      int64_t n = 1;
      for (const int64_t size : tensor.shape) n *= size;
      Values& values = values_[tensor.name];
      values.bf16.resize(static_cast<size_t>(n));
      values.f32.resize(static_cast<size_t>(n));
      for (size_t i = 0; i < values.bf16.size(); ++i) {
        values.bf16[i] = static_cast<uint16_t>(random() & 0xbfffu);  // finite
        values.f32[i] = bf16_to_f32(values.bf16[i]);
      }
      tensors_.push_back({tensor.name, tensor.shape, std::string(safetensors_name(stored)), stored, false,
                          static_cast<uint64_t>(n) * size_of(stored)});
    }
  }
  std::string kind_name = "safetensors";
  mutable std::atomic<uint64_t> bytes_read{0};

  std::vector<SourceTensor>& mutable_tensors() { return tensors_; }
  std::vector<AuxFile>& mutable_aux() { return aux_; }
  const std::string& path() const override { return path_; }
  std::string_view kind() const override { return kind_name; }
  const ModelConfig& config() const override { return config_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const std::vector<AuxFile>& aux_files() const override { return aux_; }
  std::string fingerprint() const override { return "memory:" + std::to_string(seed_); }
  void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                 std::span<std::byte> out) const override {
    const Values& values = values_.at(tensor.name);
    const int64_t columns = tensor.shape.size() == 1 ? tensor.shape[0] : tensor.shape[1];
    const auto begin = static_cast<size_t>(row_begin * columns), end = static_cast<size_t>(row_end * columns);
    if (end > values.bf16.size() || out.size() != (end - begin) * size_of(as)) throw std::runtime_error("read_rows");
    std::memcpy(out.data(),
                as == DType::bf16 ? static_cast<const void*>(values.bf16.data() + begin) : values.f32.data() + begin,
                out.size());
    bytes_read += out.size();
  }
  /// All of a tensor as it should be in the ranks.
  std::string bytes_of(const std::string& name, DType as) const {
    for (const SourceTensor& tensor : tensors_) {
      if (tensor.name != name) continue;
      const int64_t n = tensor.shape.size() == 1 ? 1 : tensor.shape[0];
      std::string bytes(values_.at(name).bf16.size() * size_of(as), '\0');
      read_rows(tensor, 0, n, as, std::as_writable_bytes(std::span(bytes)));
      return bytes;
    }
    throw std::runtime_error("no tensor " + name);
  }

 private:
  struct Values {
    std::vector<uint16_t> bf16;
    std::vector<float> f32;  // the same
  };
  std::string path_ = "memory";
  ModelConfig config_;
  DType stored_;
  uint64_t seed_;
  std::vector<SourceTensor> tensors_;
  std::vector<AuxFile> aux_;
  std::map<std::string, Values> values_;
};

struct RankTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
  uint64_t begin = 0;
  std::string file;
};

/// A safetensors file as the format's own text describes it.
inline std::map<std::string, RankTensor> read_safetensors(const fs::path& path) {
  const std::string text = read_text(path);
  uint64_t n = 0;
  std::memcpy(&n, text.data(), 8);
  // Without the spaces that fill it up to 2 MiB: a parser that is not optimised takes seconds for them.
  const Json header = Json::parse(text.substr(8, text.find_last_of('}', 7 + n) - 7));
  std::map<std::string, RankTensor> out;
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") continue;
    const uint64_t begin = item.value()["data_offsets"][0], end = item.value()["data_offsets"][1];
    out[item.key()] = {item.value()["dtype"], item.value()["shape"], text.substr(8 + n + begin, end - begin), begin,
                       path.filename()};
  }
  return out;
}

/// All tensors of a rank directory, by its index.
inline std::map<std::string, RankTensor> read_rank(const fs::path& directory) {
  const Json index = Json::parse(read_text(directory / "model.safetensors.index.json"));
  std::map<std::string, std::map<std::string, RankTensor>> files;
  std::map<std::string, RankTensor> out;
  for (const auto& item : index["weight_map"].items()) {
    const std::string file = item.value();
    if (!files.contains(file)) files[file] = read_safetensors(directory / file);
    out[item.key()] = files[file].at(item.key());
  }
  return out;
}

inline fs::path rank_path(const fs::path& out, int tp, int rank) {
  return out / ("tp" + std::to_string(tp)) / ("rank-" + std::string(rank < 10 ? "0" : "") + std::to_string(rank));
}

inline std::string join_columns(const std::vector<const RankTensor*>& pieces) {
  std::string out;
  const auto rows = static_cast<size_t>(pieces[0]->shape[0]);
  for (size_t row = 0; row < rows; ++row) {
    for (const RankTensor* piece : pieces) {
      const size_t width = piece->bytes.size() / rows;
      out.append(piece->bytes, row * width, width);
    }
  }
  return out;
}

/// The whole tensor from the ranks' pieces; also checks what must be equal or zero.
inline std::string gather(const std::string& name, const std::vector<const RankTensor*>& pieces, const ModelConfig& c) {
  const auto has = [&](const char* word) { return name.find(word) != std::string::npos; };
  const auto tp = static_cast<int>(pieces.size());
  std::string out;
  if (has("o_proj.weight") || has("down_proj.weight")) return join_columns(pieces);
  if (has("q_proj") || has("gate_proj") || has("up_proj")) {
    for (const RankTensor* piece : pieces) out += piece->bytes;
    return out;
  }
  if (has("k_proj") || has("v_proj")) {
    const int copies = tp > c.n_kv_heads ? tp / c.n_kv_heads : 1;
    for (int rank = 0; rank < tp; ++rank) {
      if (rank % copies == 0) out += pieces[rank]->bytes;
      EXPECT_EQ(pieces[rank]->bytes, pieces[rank - rank % copies]->bytes) << name << " rank " << rank;
    }
    return out;
  }
  if (has("embed_tokens") || has("lm_head")) {
    for (const RankTensor* piece : pieces) out += piece->bytes;
    const size_t whole = out.size() / static_cast<size_t>(pieces[0]->shape[0] * tp) * static_cast<size_t>(c.vocab_size);
    EXPECT_EQ(out.find_first_not_of('\0', whole), std::string::npos) << name << ": padding is not zero";
    return out.substr(0, whole);
  }
  for (const RankTensor* piece : pieces) EXPECT_EQ(piece->bytes, pieces[0]->bytes) << name;
  return pieces[0]->bytes;
}

/// Every file under a directory: relative name → content.
inline std::map<std::string, std::string> tree(const fs::path& root) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_regular_file())
      files[entry.path().lexically_relative(root).generic_string()] = read_text(entry.path());
  }
  return files;
}
/// Names of files that differ or are only on one side: for messages shorter than two binary trees.
inline std::vector<std::string> differences(const std::map<std::string, std::string>& a,
                                            const std::map<std::string, std::string>& b) {
  std::vector<std::string> names;
  for (const auto& [name, content] : a) {
    const auto other = b.find(name);
    if (other == b.end() || other->second != content) names.push_back(name);
  }
  for (const auto& [name, content] : b) {
    if (!a.contains(name)) names.push_back(name);
  }
  return names;
}

/// The message of the error that `fn` throws, which must be of this kind.
template <class Fn>
std::string error_of(ErrorKind kind, Fn&& fn) {
  try {
    fn();
  } catch (const Error& e) {
    EXPECT_EQ(to_string(e.kind()), to_string(kind)) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

inline ShardOptions small_options(std::vector<int> tps) {
  ShardOptions options;
  options.tps = std::move(tps);
  options.memory_bytes = 64u << 20;
  options.part_bytes = 128u << 10;  // several parts
  options.n_threads = 2;
  return options;
}

}  // namespace firstlight::testing_shard
