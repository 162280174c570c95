// SPDX-License-Identifier: Apache-2.0
// What is done to one row at a time: norms, rotation and the store into pages, sums, widening.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

inline void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  VF sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] = load(x + i + v * kLanes) * load(x + i + v * kLanes) + sums[v];
  }
  for (; i < n; i += kLanes) {
    const VF xs = load_upto(x + i, n - i);
    sums[0] = xs * xs + sums[0];
  }
  const float mean = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(n);
  const VF scale = splat(1.0f / std::sqrt(mean + eps));
  for (i = 0; i < n; i += kLanes)
    store_upto(out + i, load_upto(x + i, n - i) * scale * load_upto(weight + i, n - i), n - i);
}

inline void add(const float* y, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += kLanes) store_upto(x + i, load_upto(x + i, n - i) + load_upto(y + i, n - i), n - i);
}

FIRSTLIGHT_INLINE void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    const VF a = load_upto(head + i, n), b = load_upto(head + half + i, n);
    const VF c = load_upto(cos + i, n), s = load_upto(sin + i, n);
    store_upto(head + i, a * c - b * s, n);
    store_upto(head + half + i, b * c + a * s, n);
  }
}

/// x -= mean, if there is one.
FIRSTLIGHT_INLINE void centre(float* x, const float* mean, int64_t n) {
  if (!mean) return;
  for (int64_t i = 0; i < n; i += kLanes)
    store_upto(x + i, load_upto(x + i, n - i) - load_upto(mean + i, n - i), n - i);
}

FIRSTLIGHT_INLINE void store_head(const float* from, int64_t d, KvKind kind, std::byte* to) {
  if (kind == KvKind::f32) {
    std::memcpy(to, from, static_cast<size_t>(d) * 4);
    return;
  }
  uint16_t* at = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < d; ++i) at[i] = f32_to_bf16(from[i]);
}

inline void rope_and_store(const RopeRow& row, const KvLayer& kv) {
  const int64_t d = kv.head_dim, element = kv.kind == KvKind::bf16 ? 2 : 4;
  const int64_t head_bytes = kPageTokens * d * element;
  std::byte* slot = kv.data + static_cast<uint64_t>(row.page) * kv.page_stride + row.slot * d * element;
  for (int h = 0; h < row.n_heads + kv.n_kv_heads; ++h) {
    float* head = row.qkv + h * d;
    const float* norm = h < row.n_heads ? row.q_norm : row.k_norm;
    if (norm) rms_norm(head, norm, row.eps, d, head);
    rotate(head, row.cos, row.sin, d / 2);
  }
  for (int h = 0; h < 2 * kv.n_kv_heads; ++h) {
    float* head = row.qkv + (row.n_heads + h) * d;
    centre(head, row.means ? row.means + h * d : nullptr, d);
    store_head(head, d, kv.kind, slot + h * head_bytes);
  }
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
