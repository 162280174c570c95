// SPDX-License-Identifier: Apache-2.0
// For tests: the tiny models of tests/data/golden, what transformers computes for them, and helpers that run them.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "firstlight/model/reference_ops.h"
#include "firstlight/model/runner.h"
#include "firstlight/model/whole_model.h"

namespace firstlight {

inline constexpr double kMeanKld = 2e-3;  // nats, bf16 (on a CPU or a GPU) against f32 on the CPU

/// Folders of tests/data/golden, sorted: "llama2", "llama3", …
inline std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(FIRSTLIGHT_TESTDATA "/golden")) {
    if (entry.is_directory()) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline std::string golden_path(const std::string& name) { return std::string(FIRSTLIGHT_TESTDATA "/golden/") + name; }

inline std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Reads config.json and the BF16 model.safetensors, trusting them, without the code under test.
inline WholeModel read_whole_model(const std::string& name) {
  WholeModel model{parse_hf_config(content(golden_path(name) + "/config.json")), {}};
  const std::string file = content(golden_path(name) + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  const auto header = nlohmann::json::parse(file.substr(8, header_bytes));
  for (const auto& [tensor, info] : header.items()) {
    if (tensor == "__metadata__") continue;
    EXPECT_EQ(info["dtype"], "BF16");
    const uint64_t begin = info["data_offsets"][0], end = info["data_offsets"][1];
    std::vector<float>& values = model.tensors[tensor];
    for (uint64_t at = begin; at < end; at += 2) {
      uint16_t bits = 0;
      std::memcpy(&bits, file.data() + 8 + header_bytes + at, 2);
      values.push_back(bf16_to_f32(bits));
    }
  }
  return model;
}

/// A golden model cut in memory, and a runner over it.
struct Running {
  Running(const std::string& name, int tp, DType dtype, KvKind kv, int n_threads = 1, bool reference = false)
      : model(read_whole_model(name)), weights(cut_all(model, tp, dtype)) {
    RunnerOptions options;
    options.kv = kv;
    options.n_pages = 40;
    options.n_threads = n_threads;
    if (reference) options.make_ops = [](ThreadPool&) { return std::make_unique<ReferenceOps>(); };
    runner = make_runner(model.config, weights, options);
  }
  WholeModel model;
  std::vector<RankWeights> weights;
  std::unique_ptr<Runner> runner;
};

/// For INSTANTIATE_TEST_SUITE_P: "llama3.1" → "llama3_1".
inline std::string golden_test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

struct GoldenSequence {
  std::vector<int> ids;
  std::vector<double> logprobs;  ///< [0] is nothing
  std::map<int, std::vector<std::pair<int, double>>> top;
};

inline std::vector<GoldenSequence> read_golden(const std::string& path) {
  std::vector<GoldenSequence> sequences;
  const auto whole = nlohmann::json::parse(content(path));
  for (const auto& json : whole["sequences"]) {
    GoldenSequence& sequence = sequences.emplace_back();
    sequence.ids = json["ids"].get<std::vector<int>>();
    for (const auto& x : json["logprobs"]) sequence.logprobs.push_back(x.is_null() ? 0 : x.get<double>());
    for (const auto& [position, tokens] : json["top"].items()) {
      for (const auto& token : tokens)
        sequence.top[std::stoi(position)].emplace_back(token[0].get<int>(), token[1].get<double>());
    }
  }
  EXPECT_GE(sequences.size(), 3u) << path;
  for (const GoldenSequence& sequence : sequences) EXPECT_GE(sequence.top.size(), 3u) << path;
  return sequences;
}

/// ln p of each row of logits [n, vocab_size].
inline std::vector<std::vector<double>> log_softmax(const std::vector<float>& logits, int vocab_size) {
  std::vector<std::vector<double>> out;
  for (size_t at = 0; at < logits.size(); at += static_cast<size_t>(vocab_size)) {
    std::vector<double>& row = out.emplace_back(logits.begin() + static_cast<std::ptrdiff_t>(at),
                                                logits.begin() + static_cast<std::ptrdiff_t>(at) + vocab_size);
    const double highest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double x : row) sum += std::exp(x - highest);
    for (double& x : row) x -= highest + std::log(sum);
  }
  return out;
}

/// Logits of every token of a fresh sequence, `chunk` tokens a step.
inline std::vector<float> all_logits(Runner& runner, const std::vector<int>& ids, size_t chunk = 512) {
  PageTable pages(runner.pool());
  EXPECT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
  std::vector<float> all, step;
  for (size_t at = 0; at < ids.size(); at += chunk) {
    const size_t n = std::min(chunk, ids.size() - at);
    const SequenceChunk piece{std::span(ids).subspan(at, n), static_cast<int64_t>(at), &pages, static_cast<int>(n)};
    runner.forward({&piece, 1}, step);
    all.insert(all.end(), step.begin(), step.end());
  }
  return all;
}

/// The largest difference from transformers' log-probabilities.
inline double worst_difference(const GoldenSequence& sequence, const std::vector<std::vector<double>>& logprobs) {
  double worst = 0;
  for (size_t i = 1; i < sequence.ids.size(); ++i) {
    worst = std::max(worst, std::abs(logprobs[i - 1][static_cast<size_t>(sequence.ids[i])] - sequence.logprobs[i]));
  }
  for (const auto& [position, tokens] : sequence.top) {
    for (const auto& [id, logprob] : tokens) {
      worst = std::max(worst, std::abs(logprobs[static_cast<size_t>(position)][static_cast<size_t>(id)] - logprob));
    }
  }
  return worst;
}

}  // namespace firstlight
