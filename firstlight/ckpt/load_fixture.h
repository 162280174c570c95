// SPDX-License-Identifier: Apache-2.0
// For the tests of loading: a small model with made-up weights, cut into a real rank checkpoint, and ways to damage it.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <span>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/source.h"
#include "firstlight/device/copy.h"

namespace firstlight {

/// Flips a bit of the leaf number `at` before it is hashed, where it lies.
class FlippingHasher final : public LeafHasher {
 public:
  FlippingHasher(Device device, int at) : device_(device), at_(at), below_(make_leaf_hasher(device)) {}
  void hash(std::span<const LeafBytes> leaves, std::span<uint64_t> hashes) override {
    for (const LeafBytes& leaf : leaves) {
      if (n_++ != at_) continue;
      auto* byte = const_cast<std::byte*>(leaf.data + leaf.size / 3);
      std::byte value{};
      copy(&value, {}, byte, device_, 1);
      value ^= std::byte{1};
      copy(byte, device_, &value, {}, 1);
    }
    below_->hash(leaves, hashes);
  }

 private:
  Device device_;
  int at_, n_ = 0;
  std::unique_ptr<LeafHasher> below_;
};

/// About 5 MB as bf16: a layer is longer than a leaf and shorter than two, so leaves hold parts of two layers; the
/// embedding and the norms are no page multiples and stand in the tail.
inline constexpr const char* kTinyConfig = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
  "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1003, "max_position_embeddings": 128,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16"})";

/// The elements of a tensor of the whole model: numbers that bf16 holds exactly, different for neighbours and for
/// names.
class WeightsOf {
 public:
  explicit WeightsOf(const std::string& name) : seed_(std::hash<std::string>()(name)) {}
  float operator()(int64_t row, int64_t col) const {
    uint64_t h = seed_ + 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(row * 131071 + col + 1);
    h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9ull;
    return static_cast<float>(static_cast<int>((h >> 40) % 255) - 127) / 128;
  }

 private:
  uint64_t seed_;
};

/// A checkpoint that exists in memory only.
class FakeSource final : public Source {
 public:
  explicit FakeSource(const std::string& config = kTinyConfig, DType dtype = DType::bf16)
      : config_(parse_hf_config(config)), aux_{{"config.json", config}} {
    for (const ModelTensor& tensor : model_tensors(config_)) {
      SourceTensor one;
      one.name = tensor.name;
      one.shape = tensor.shape;
      one.dtype = dtype;
      one.stored_type = safetensors_name(dtype);
      one.stored_bytes = size_of(dtype);
      for (const int64_t n : tensor.shape) one.stored_bytes *= static_cast<uint64_t>(n);
      tensors_.push_back(one);
    }
  }
  const std::string& path() const override { return path_; }
  std::string_view kind() const override { return "safetensors"; }
  const ModelConfig& config() const override { return config_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const std::vector<AuxFile>& aux_files() const override { return aux_; }
  std::string fingerprint() const override { return "fake"; }
  void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                 std::span<std::byte> out) const override {
    const bool flat = tensor.shape.size() == 1;
    const int64_t n_cols = flat ? tensor.shape[0] : tensor.shape[1];
    const WeightsOf weight(tensor.name);
    size_t at = 0;
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t col = 0; col < n_cols; ++col, at += size_of(as)) {
        const float value = flat ? weight(col, 0) : weight(row, col);
        const uint16_t half = f32_to_bf16(value);
        if (at + size_of(as) > out.size()) throw Error(ErrorKind::bug, "read_rows: out is too small");
        std::memcpy(out.data() + at, as == DType::f32 ? static_cast<const void*>(&value) : &half, size_of(as));
      }
    }
    if (at != out.size()) throw Error(ErrorKind::bug, "read_rows: out has another size");
  }

 private:
  std::string path_ = "fake";
  ModelConfig config_;
  std::vector<AuxFile> aux_;
  std::vector<SourceTensor> tensors_;
};

/// Every element of a loaded rank against the made-up weights.
inline void expect_weights(const ModelConfig& config, const RankWeights& weights) {
  const std::vector<ModelTensor> tensors = model_tensors(config);
  ASSERT_EQ(weights.tensors.size(), tensors.size());
  for (const ModelTensor& tensor : tensors) {
    const auto found = weights.tensors.find(tensor.name);
    ASSERT_NE(found, weights.tensors.end()) << tensor.name;
    const Tensor& is = found->second;
    const Slice slice = slice_of(config, tensor, weights.tp, weights.rank);
    ASSERT_EQ(is.shape, slice.shape()) << tensor.name;
    ASSERT_EQ(reinterpret_cast<uintptr_t>(is.data) % kSlotAlignment, 0u) << tensor.name;
    ASSERT_GE(is.data, weights.arena.data());
    ASSERT_LE(is.data + is.size_bytes, weights.arena.data() + weights.arena.size());
    const bool flat = tensor.shape.size() == 1;
    const std::byte* at = is.data;
    const WeightsOf weight(tensor.name);
    for (int64_t row = slice.row_begin; row < slice.row_end; ++row) {
      for (int64_t col = flat ? 0 : slice.col_begin; col < (flat ? 1 : slice.col_end); ++col, at += size_of(is.dtype)) {
        float value = 0;
        uint16_t half = 0;
        std::memcpy(is.dtype == DType::f32 ? static_cast<void*>(&value) : &half, at, size_of(is.dtype));
        if (is.dtype == DType::bf16) value = bf16_to_f32(half);
        const float expected = row < tensor.shape[0] ? weight(row, col) : 0;  // padding of the vocabulary
        if (value == expected) continue;
        FAIL() << tensor.name << " [" << row << ", " << col << "] of rank " << weights.rank << " is " << value
               << ", expected " << expected;
      }
    }
    ASSERT_EQ(at, is.data + is.size_bytes);
  }
}

/// A directory with a checkpoint for tp 1, 2 and 4, made once; each test has a copy of its own.
class LoadTest : public ::testing::Test {
 protected:
  static fs::path directory(const std::string& name) {
    return fs::path(::testing::TempDir()) / str("firstlight_load.", ::getpid(), ".", name);
  }
  static fs::path make_checkpoint(const std::string& name, DTypeChoice dtype, uint64_t part_bytes,
                                  const std::string& config = kTinyConfig) {
    const fs::path out = directory(name);
    fs::remove_all(out);
    ShardOptions options;
    options.tps = {1, 2, 4};
    options.dtype = dtype;
    options.part_bytes = part_bytes;
    options.n_threads = 1;
    shard(FakeSource(config), out, options);
    return out;
  }
  static void SetUpTestSuite() { original_ = make_checkpoint("original", DTypeChoice::bf16, 3u << 19); }
  static void TearDownTestSuite() { fs::remove_all(original_); }

  void SetUp() override {
    out_ = directory("copy");
    fs::remove_all(out_);
    fs::copy(original_, out_, fs::copy_options::recursive);
  }
  void TearDown() override { fs::remove_all(out_); }

  static void flip(const fs::path& path, uint64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
    ASSERT_TRUE(file.good()) << path << " " << offset;
  }
  /// Rewrites the manifest as `change` makes it, and READY to match: a well-signed lie.
  void forge(const std::function<void(Manifest&)>& change) {
    Manifest manifest = read_manifest(out_);
    change(manifest);
    const std::string json = to_json(manifest);
    std::ofstream(out_ / "manifest.json") << json;
    std::ofstream(out_ / "READY") << xxh3_128_hex(std::as_bytes(std::span(json))) << "\n";
  }

  /// Loads to the end; what went wrong, or nullopt.
  std::optional<Error> error_of(const LoadOptions& options) {
    try {
      load_rank_checkpoint(out_, options)->wait();
    } catch (const Error& error) {
      return error;
    }
    return std::nullopt;
  }
  void expect_error(ErrorKind kind, const std::vector<std::string>& words, const LoadOptions& options) {
    expect_error(error_of(options), kind, words);
  }
  static void expect_error(const std::optional<Error>& error, ErrorKind kind, const std::vector<std::string>& words) {
    ASSERT_TRUE(error) << "was loaded; expected to read of " << words.front();
    EXPECT_EQ(to_string(error->kind()), to_string(kind)) << error->what();
    for (const std::string& word : words)
      EXPECT_NE(std::string(error->what()).find(word), std::string::npos) << error->what() << "\n  lacks: " << word;
  }

  inline static fs::path original_;
  fs::path out_;
};

}  // namespace firstlight
