// SPDX-License-Identifier: Apache-2.0
// For tests: what a KV page holds and what attention is, from the definitions (see reference_ops.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "firstlight/base/half.h"
#include "firstlight/ops/ops.h"

namespace firstlight::reference {

/// Element of head h of [k heads, v heads] at a position.
inline std::byte* element(const KvLayer& kv, const int32_t* pages, int64_t position, int h, int d) {
  const int64_t page = pages[position / kPageTokens], slot = position % kPageTokens;
  const int64_t index = (static_cast<int64_t>(h) * kPageTokens + slot) * kv.head_dim + d;
  return kv.data + static_cast<uint64_t>(page) * kv.page_stride +
         static_cast<uint64_t>(index * kv_element_bytes(kv.kind));
}
inline void store(const KvLayer& kv, const int32_t* pages, int64_t position, int h, int d, float value) {
  std::byte* to = element(kv, pages, position, h, d);
  if (kv.kind == KvKind::f32) {
    *reinterpret_cast<float*>(to) = value;
  } else {
    *reinterpret_cast<uint16_t*>(to) = f32_to_bf16(value);
  }
}
inline double stored(const KvLayer& kv, const int32_t* pages, int64_t position, int h, int d) {
  const std::byte* from = element(kv, pages, position, h, d);
  if (kv.kind == KvKind::f32) return *reinterpret_cast<const float*>(from);
  return bf16_to_f32(*reinterpret_cast<const uint16_t*>(from));
}

inline void attend_head(const float* q, int64_t n_keys, int kv_head, const int32_t* pages, const KvLayer& kv,
                        float* out) {
  std::vector<double> weights(static_cast<size_t>(n_keys));
  double highest = -INFINITY, total = 0;
  for (int64_t t = 0; t < n_keys; ++t) {
    double score = 0;
    for (int d = 0; d < kv.head_dim; ++d) score += q[d] * stored(kv, pages, t, kv_head, d);
    weights[static_cast<size_t>(t)] = score / std::sqrt(static_cast<double>(kv.head_dim));
    highest = std::max(highest, weights[static_cast<size_t>(t)]);
  }
  for (double& weight : weights) total += weight = std::exp(weight - highest);
  for (int d = 0; d < kv.head_dim; ++d) {
    double sum = 0;
    for (int64_t t = 0; t < n_keys; ++t)
      sum += weights[static_cast<size_t>(t)] * stored(kv, pages, t, kv.n_kv_heads + kv_head, d);
    out[d] = static_cast<float>(sum / total);
  }
}

}  // namespace firstlight::reference
