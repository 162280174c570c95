// SPDX-License-Identifier: Apache-2.0
// For tests: a small model held whole, as plain floats, and cut into ranks in memory without the loader.
#pragma once
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "firstlight/base/half.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/weights.h"

namespace firstlight {

struct WholeModel {
  ModelConfig config;
  std::map<std::string, std::vector<float>> tensors;  ///< by name, row-major
};

/// Values with the bits of bf16, of a scale at which attention is far from uniform and logits differ by several nats.
/// Deterministic.
inline WholeModel random_model(const ModelConfig& config, uint64_t seed = 1) {
  WholeModel model{config, {}};
  uint64_t state = seed;
  const auto noise = [&state] {  // SplitMix64; the sum of four uniforms is near enough to a normal
    double sum = 0;
    for (int i = 0; i < 4; ++i) {
      uint64_t z = (state += 0x9e3779b97f4a7c15u);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      sum += static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53 - 0.5;
    }
    return sum * std::sqrt(3.0);
  };
  for (const ModelTensor& tensor : model_tensors(config)) {
    const bool norm = tensor.name.ends_with("norm.weight"), vocab = tensor.slice == SliceKind::vocab_rows;
    const double fan_in = tensor.shape.size() == 2 ? static_cast<double>(tensor.shape[1]) : 4.0;
    const double scale = norm ? 0.25 : (vocab ? 2.5 : 1.3) / std::sqrt(fan_in);
    int64_t n = 1;
    for (const int64_t d : tensor.shape) n *= d;
    std::vector<float>& values = model.tensors[tensor.name];
    for (int64_t i = 0; i < n; ++i)
      values.push_back(bf16_to_f32(f32_to_bf16(static_cast<float>((norm ? 1 : 0) + scale * noise()))));
  }
  return model;
}

/// Where tensors lie in the arena: one after the other in layer order, or each `gap` bytes from the last.
inline RankWeights cut(const WholeModel& model, int tp, int rank, DType dtype, uint64_t gap = 0) {
  const ModelConfig& config = model.config;
  const uint64_t element = size_of(dtype);
  RankWeights weights;
  weights.rank = rank;
  weights.tp = tp;
  weights.vocab_rows = vocab_rows_per_rank(config, tp);
  weights.vocab_begin = weights.vocab_rows * rank;
  weights.ready = std::make_unique<Gates>(n_gates(config));
  uint64_t total = 0;
  for (const bool fill : {false, true}) {
    if (fill) weights.arena = Buffer(Device{}, total);
    uint64_t at = 0;
    for (const ModelTensor& whole : model_tensors(config)) {
      const Slice slice = slice_of(config, whole, tp, rank);
      const int64_t rows = slice.row_end - slice.row_begin, cols = slice.col_end - slice.col_begin;
      const uint64_t size = static_cast<uint64_t>(rows * cols) * element;
      if (fill) {
        std::byte* data = weights.arena.data() + at;
        const std::vector<float>& values = model.tensors.at(whole.name);
        const int64_t whole_cols = whole.shape.size() == 2 ? whole.shape[1] : 1;
        for (int64_t i = 0; i < rows * cols; ++i) {
          const auto from = static_cast<size_t>((slice.row_begin + i / cols) * whole_cols + slice.col_begin + i % cols);
          const float value = from < values.size() ? values[from] : 0.0f;  // padding rows of the vocabulary
          const uint16_t rounded = f32_to_bf16(value);
          std::memcpy(data + static_cast<uint64_t>(i) * element,
                      dtype == DType::f32 ? static_cast<const void*>(&value) : &rounded, element);
        }
        weights.tensors[whole.name] = {whole.name, dtype, slice.shape(), data, size};
      }
      at += size + gap;
    }
    total = at;
  }
  return weights;
}

/// All ranks, every gate open.
inline std::vector<RankWeights> cut_all(const WholeModel& model, int tp, DType dtype, uint64_t gap = 0) {
  std::vector<RankWeights> ranks;
  for (int r = 0; r < tp; ++r) {
    ranks.push_back(cut(model, tp, r, dtype, gap));
    for (int g = 0; g < n_gates(model.config); ++g) ranks.back().ready->open(g);
  }
  return ranks;
}

}  // namespace firstlight
