// SPDX-License-Identifier: Apache-2.0
// Synthetic models have the real shapes, sane values, and the same bytes on every machine.
#include <gmock/gmock.h>

#include <fstream>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/shard_testing.h"
#include "firstlight/ckpt/synth_models.h"
#include "firstlight/ckpt/synth_source.h"
#include "firstlight/quant/convert.h"

namespace firstlight {
namespace {

using namespace testing_shard;

TEST(Synth, EveryKnownModelHasItsPublishedNumberOfParameters) {
  // From the model cards and technical reports (parameters with embeddings; tied ones counted once).
  const std::map<std::string, double> published{
      {"llama-3.1-8b", 8.03e9},     {"llama-3.2-1b", 1.236e9},    {"llama-2-7b", 6.74e9},   {"llama-3.1-70b", 70.55e9},
      {"llama-3.1-405b", 405.85e9}, {"mistral-7b-v0.3", 7.248e9}, {"qwen2.5-7b", 7.616e9},  {"qwen2.5-0.5b", 0.494e9},
      {"qwen3-8b", 8.19e9},         {"qwen3-0.6b", 0.596e9},      {"smollm2-135m", 134.5e6}};
  ASSERT_EQ(synth_names().size(), published.size());
  for (const std::string& name : synth_names()) {
    double n = 0;
    for (const ModelTensor& tensor : model_tensors(parse_hf_config(synth_config(name)))) {
      double elements = 1;
      for (const int64_t size : tensor.shape) elements *= static_cast<double>(size);
      n += elements;
    }
    EXPECT_NEAR(n / published.at(name), 1, 0.002) << name;
  }
  EXPECT_THROW(synth_config("gpt-5"), Error);
}

TEST(Synth, ThreadsAndPartsDoNotChangeTheValuesAndTheSeedDoes) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("mistral").config;
  options.n_threads = 1;
  synth(scratch.path() / "a", options);
  options.n_threads = 3;
  synth(scratch.path() / "b", options);
  EXPECT_THAT(differences(tree(scratch.path() / "a"), tree(scratch.path() / "b")), ::testing::IsEmpty());
  options.part_bytes = 300'000;
  synth(scratch.path() / "c", options);
  const auto whole = read_safetensors(scratch.path() / "a/model.safetensors");
  for (const auto& [name, tensor] : read_rank(scratch.path() / "c")) EXPECT_EQ(tensor.bytes, whole.at(name).bytes);
  options.seed = 1;
  synth(scratch.path() / "d", options);
  const char* name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_NE(read_rank(scratch.path() / "d").at(name).bytes, whole.at(name).bytes);
}

TEST(SourceFingerprint, TellsModelsOfEqualShapesApartAndShardRefusesToMixThem) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("mistral").config;
  for (const uint64_t seed : {1, 2}) {
    options.seed = seed;
    synth(scratch.path() / std::to_string(seed), options);
  }
  const auto one = open_source(scratch.path() / "1"), other = open_source(scratch.path() / "2");
  EXPECT_EQ(one->fingerprint(), open_source(scratch.path() / "1")->fingerprint());
  EXPECT_NE(one->fingerprint(), other->fingerprint());
  ShardOptions shard_options;
  shard_options.tps = {1};
  shard(*one, scratch.path() / "out", shard_options);
  shard_options.tps = {1, 2};
  EXPECT_THROW(shard(*other, scratch.path() / "out", shard_options), Error);
  shard_options.force = true;
  shard(*other, scratch.path() / "out", shard_options);
  EXPECT_THAT(verify(scratch.path() / "out", 1, {}, nullptr).problems, ::testing::IsEmpty());
}

TEST(Synth, WritesOverNothingAndLeavesNothingHalfDone) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("mistral").config;
  const fs::path out = scratch.path() / "a";
  fs::create_directories(out);
  std::ofstream(out / "model.safetensors") << "precious";
  EXPECT_THROW(synth(out, options), Error);
  EXPECT_EQ(fs::file_size(out / "model.safetensors"), 8u);
  fs::remove(out / "model.safetensors");
  std::stop_source stopped;
  stopped.request_stop();
  options.stop = stopped.get_token();
  EXPECT_THROW(synth(out, options), Interrupted);
  EXPECT_TRUE(fs::is_empty(out));
  options.stop = {};
  synth(out, options);
  EXPECT_THROW(synth(out, options), Error);
}

TEST(Synth, WeightsAreNormalAndNormsAreOne) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("mistral").config;
  synth(scratch.path() / "a", options);
  const auto tensors = read_safetensors(scratch.path() / "a/model.safetensors");
  for (const char* name : {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"}) {
    const std::string& bytes = tensors.at(name).bytes;
    double sum = 0, squares = 0, fourth = 0;
    const size_t n = bytes.size() / 2;
    for (size_t i = 0; i < n; ++i) {
      uint16_t value = 0;
      std::memcpy(&value, bytes.data() + 2 * i, 2);
      const double x = bf16_to_f32(value);
      sum += x;
      squares += x * x;
      fourth += x * x * x * x;
    }
    const double variance = squares / static_cast<double>(n);
    EXPECT_NEAR(sum / static_cast<double>(n), 0, 0.0005);
    EXPECT_NEAR(std::sqrt(variance), 0.02, 0.0005);
    EXPECT_NEAR(fourth / static_cast<double>(n) / (variance * variance), 3, 0.2);
  }
  EXPECT_NE(tensors.at("model.layers.0.mlp.up_proj.weight").bytes,
            tensors.at("model.layers.0.mlp.gate_proj.weight").bytes);
  for (const char c : tensors.at("model.norm.weight").bytes) EXPECT_TRUE(c == '\x80' || c == '\x3f');
}

TEST(Synth, WhatItMakesIsASourceThatCanBeSharded) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("qwen3").config;
  options.part_bytes = 100'000;
  synth(scratch.path() / "model", options);
  const auto source = open_source(scratch.path() / "model");
  shard(*source, scratch.path() / "out", small_options({1, 2}));
  EXPECT_THAT(verify(scratch.path() / "out", 2, {}, {}).problems, ::testing::IsEmpty());
  const auto want = read_rank(scratch.path() / "model"), found = read_rank(scratch.path() / "out/tp1/rank-00");
  ASSERT_EQ(want.size(), found.size());
  for (const auto& [name, tensor] : want) EXPECT_EQ(found.at(name).bytes, tensor.bytes) << name;
}

TEST(Synth, RankFilesMadeAtOnceAreThoseCutFromItsDirectory) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("llama_biases").config;
  options.config_json.replace(options.config_json.find("float32"), 7, "bfloat16");
  options.seed = 5;
  synth(scratch.path() / "model", options);
  shard(*open_source(scratch.path() / "model"), scratch.path() / "cut", small_options({1, 2}));
  shard(*synth_source(options), scratch.path() / "at-once", small_options({1, 2}));
  EXPECT_THAT(verify(scratch.path() / "at-once", 2, {}, {}).problems, ::testing::IsEmpty());
  auto cut = tree(scratch.path() / "cut"), at_once = tree(scratch.path() / "at-once");
  for (auto* files : {&cut, &at_once}) {  // these name their source
    files->erase("manifest.json");
    files->erase("READY");
  }
  EXPECT_GT(cut.size(), 6u);
  EXPECT_THAT(differences(cut, at_once), ::testing::IsEmpty());
}

TEST(Synth, OneByteAValueIsForTheLayersMatricesAlone) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("qwen3").config;
  options.n_layers = 1;
  options.dtype = DType::f8_e4m3;
  EXPECT_THROW(synth(scratch.path() / "directory", options), Error);
  shard(*synth_source(options), scratch.path() / "out", small_options({1, 2}));
  EXPECT_THAT(verify(scratch.path() / "out", 2, {}, {}).problems, ::testing::IsEmpty());
  const auto tensors = read_rank(scratch.path() / "out/tp1/rank-00");
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(name.find("layers.1."), std::string::npos) << name;
    const bool matrix = name.ends_with("_proj.weight");
    EXPECT_EQ(tensor.dtype, matrix ? "F8_E4M3" : "BF16") << name;
    if (!matrix) continue;
    double squares = 0;
    for (const char c : tensor.bytes) {
      const double x = f8_e4m3_to_f32(static_cast<uint8_t>(c));
      ASSERT_LE(std::abs(x), 448) << name;  // no NaN either
      squares += x * x;
    }
    EXPECT_NEAR(std::sqrt(squares / static_cast<double>(tensor.bytes.size())), 16, 0.5) << name;
  }
  // What a rank of two has is what the whole has: rows of up_proj.
  const auto half = read_rank(scratch.path() / "out/tp2/rank-01");
  const std::string name = "model.layers.0.mlp.up_proj.weight", &whole = tensors.at(name).bytes;
  EXPECT_EQ(half.at(name).bytes, whole.substr(whole.size() / 2));
}

TEST(Synth, APlanBeforeTheCutIsThePlanBehindIt) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("mistral").config;
  const auto source = synth_source(options);
  const ShardOptions cut = small_options({4});
  shard(*source, scratch.path() / "out", cut);
  const LoadPlan before = plan_source(*source, 4, cut.part_bytes), behind = plan_load(scratch.path() / "out", 4);
  ASSERT_EQ(before.ranks.size(), 4u);
  for (size_t r = 0; r < 4; ++r) {
    EXPECT_EQ(before.ranks[r].bytes, behind.ranks[r].bytes);
    EXPECT_EQ(before.ranks[r].arena_bytes, behind.ranks[r].arena_bytes);
    EXPECT_EQ(before.ranks[r].aligned_bytes, behind.ranks[r].aligned_bytes);
    EXPECT_EQ(before.ranks[r].n_reads, behind.ranks[r].n_reads);
    EXPECT_EQ(before.ranks[r].n_leaves, behind.ranks[r].n_leaves);
    EXPECT_EQ(before.ranks[r].n_parts, behind.ranks[r].n_parts);
  }
  EXPECT_THROW(plan_source(*source, 3, cut.part_bytes), Error);
}

TEST(Synth, ADirectoryWithAModelIsLeftAloneAndAnInterruptedOneIsNoModel) {
  const ScratchDirectory scratch;
  SynthOptions options;
  options.config_json = family("qwen3").config;
  std::stop_source stop;
  stop.request_stop();
  options.stop = stop.get_token();
  EXPECT_THROW(synth(scratch.path(), options), Interrupted);
  EXPECT_FALSE(fs::exists(scratch.path() / "config.json"));
  EXPECT_FALSE(fs::exists(scratch.path() / "model.safetensors"));
  options.stop = {};
  synth(scratch.path(), options);
  EXPECT_THROW(synth(scratch.path(), options), Error);
}

}  // namespace
}  // namespace firstlight
