// SPDX-License-Identifier: Apache-2.0
// Attention of single rows (generation): bound by reading keys and values, so each is read once for all heads of its
// group and widened to f32; all sums are f32.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

/// Fetches n elements into L2; the hardware's prefetchers learn a page's streams too late.
template <class T>
FIRSTLIGHT_INLINE void fetch(const T* at, int64_t n) {
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(64 / sizeof(T))) __builtin_prefetch(at + i, 0, 2);
}

/// Lanes of q[h] · keys for kSlots keys that lie one after another: to[h][slot].
template <class T, int kHeads, int kSlots>
FIRSTLIGHT_INLINE void score(const float* q, const T* keys, int64_t d, VF (*to)[kLanes]) {
  VF sums[kSlots][kHeads];  // not "= {}": that is done by a slow string instruction
#pragma GCC unroll 2
  for (int s = 0; s < kSlots; ++s) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sums[s][h] = VF{};
  }
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    VF wide[kSlots];
#pragma GCC unroll 2
    for (int s = 0; s < kSlots; ++s) wide[s] = load(keys + s * d + i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      VF qs = load(q + h * d + i);
      keep(qs);
#pragma GCC unroll 2
      for (int s = 0; s < kSlots; ++s) sums[s][h] = qs * wide[s] + sums[s][h];
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
    for (int s = 0; s < kSlots; ++s) {
      if (i < d) sums[s][h] = load_part(q + h * d + i, d - i) * load_part(keys + s * d + i, d - i) + sums[s][h];
      to[h][s] = sums[s][h];
    }
  }
}

/// scores[h * 64 + s] = q[h] · keys[s] for kHeads heads; `next` (the values) is fetched meanwhile.
template <class T, int kHeads>
FIRSTLIGHT_INLINE void score_slots(const float* q, const T* keys, const T* next, int64_t n_slots, int64_t d,
                                   float* scores) {
  for (int64_t s0 = 0; s0 < n_slots; s0 += kLanes) {
    VF lanes[kHeads][kLanes];
    const int64_t n = std::min<int64_t>(kLanes, n_slots - s0);
    for (int64_t s = 0; s < n; ++s) fetch(next + (s0 + s) * d, d);
    int64_t s = 0;
    for (; s + 2 <= n; s += 2) {
      VF to[kHeads][kLanes];
      score<T, kHeads, 2>(q, keys + (s0 + s) * d, d, to);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) lanes[h][s] = to[h][0], lanes[h][s + 1] = to[h][1];
    }
    if (s < n) {
      VF to[kHeads][kLanes];
      score<T, kHeads, 1>(q, keys + (s0 + s) * d, d, to);
      for (int h = 0; h < kHeads; ++h) lanes[h][s] = to[h][0];
      ++s;
    }
    for (; s < kLanes; ++s) {
      for (int h = 0; h < kHeads; ++h) lanes[h][s] = VF{};
    }
    for (int h = 0; h < kHeads; ++h) store(scores + h * kPageTokens + s0, sum_each(lanes[h]));
  }
}

/// out[h][i…] = scale[h] * out[h][i…] + Σ_s p[h * 64 + s] * values[s][i…] for kVectors vectors at i, of which n values
/// exist.
template <class T, int kHeads, int kVectors>
FIRSTLIGHT_INLINE void mix(const float* p, const float* scale, const T* values, int64_t n_slots, int64_t d, int64_t n,
                           float* out, int64_t out_stride) {
  VF sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[h][v] = load_upto(out + h * out_stride + v * kLanes, n - v * kLanes) * splat(scale[h]);
  }
  for (int64_t s = 0; s < n_slots; ++s) {
    VF wide[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const T* at = values + s * d + v * kLanes;
      wide[v] = kVectors > 1 ? load(at) : load_upto(at, n);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const VF weight = splat(p[h * kPageTokens + s]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[h][v] = weight * wide[v] + sums[h][v];
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_upto(out + h * out_stride + v * kLanes, sums[h][v], n - v * kLanes);
  }
}

template <class T, int kHeads>
FIRSTLIGHT_INLINE void mix_values(const float* p, const float* scale, const T* values, int64_t n_slots, int64_t d,
                                  float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= d; i += 4 * kLanes)
    mix<T, kHeads, 4>(p, scale, values + i, n_slots, d, d - i, out + i, out_stride);
  for (; i < d; i += kLanes) mix<T, kHeads, 1>(p, scale, values + i, n_slots, d, d - i, out + i, out_stride);
}

template <class T, int kHeads>
void attend_heads(const AttentionJob& job, const float* q, int64_t n_keys, int kv_head, int64_t page_begin,
                  int64_t page_end, float* partial) {
  const int64_t d = job.kv->head_dim, stride = d + 2;
  const float factor = kLog2E / std::sqrt(static_cast<float>(d));
  for (int h = 0; h < kHeads; ++h) {
    for (int64_t i = 0; i < d; ++i) partial[h * stride + i] = 0;
    partial[h * stride + d] = kMasked;
    partial[h * stride + d + 1] = 0;
  }
  fetch(reinterpret_cast<const T*>(page_of(job, page_begin, 0, kv_head)),
        std::min<int64_t>(kPageTokens, n_keys - page_begin * kPageTokens) * d);
  for (int64_t page = page_begin; page < page_end; ++page) {
    const int64_t n_slots = std::min<int64_t>(kPageTokens, n_keys - page * kPageTokens);
    alignas(64) float scores[kHeads * kPageTokens];
    float scale[kHeads];
    const T* keys = reinterpret_cast<const T*>(page_of(job, page, 0, kv_head));
    const T* values = reinterpret_cast<const T*>(page_of(job, page, 1, kv_head));
    score_slots<T, kHeads>(q, keys, values, n_slots, d, scores);
    for (int h = 0; h < kHeads; ++h) {
      float* s = scores + h * kPageTokens;
      float& maximum = partial[h * stride + d];
      float& divisor = partial[h * stride + d + 1];
      float top = maximum;
      for (int64_t i = n_slots; i < kPageTokens; ++i) s[i] = kMasked;
      VF tops = max(max(load(s), load(s + kLanes)), max(load(s + 2 * kLanes), load(s + 3 * kLanes)));
      for (int64_t i = 4 * kLanes; i < kPageTokens; i += kLanes) tops = max(tops, load(s + i));
      top = std::max(top, largest(tops));
      VF total{};
      for (int64_t i = 0; i < n_slots; i += kLanes) {
        VF p = exp2(load(s + i) * splat(factor) + splat(-top * factor));
        store(s + i, p);
        total = total + p;
      }
      scale[h] = exp2(splat((maximum - top) * factor))[0];
      maximum = top;
      divisor = divisor * scale[h] + sum(total);
    }
    if (page + 1 < page_end) fetch(reinterpret_cast<const T*>(page_of(job, page + 1, 0, kv_head)), kPageTokens * d);
    mix_values<T, kHeads>(scores, scale, values, n_slots, d, partial, stride);
  }
}

template <class T>
void attend_group(const AttentionJob& job, int64_t row, int kv_head, int64_t page_begin, int64_t page_end,
                  float* partial) {
  const int64_t d = job.kv->head_dim, n_keys = job.span->position + row + 1;
  for (int head = 0; head < job.group;) {
    const float* q = job.q + row * job.q_stride + (int64_t{kv_head} * job.group + head) * d;
    float* to = partial + head * (d + 2);
    const int n = std::min(4, job.group - head);
    switch (n) {
      case 1:
        attend_heads<T, 1>(job, q, n_keys, kv_head, page_begin, page_end, to);
        break;
      case 2:
        attend_heads<T, 2>(job, q, n_keys, kv_head, page_begin, page_end, to);
        break;
      case 3:
        attend_heads<T, 3>(job, q, n_keys, kv_head, page_begin, page_end, to);
        break;
      case 4:
        attend_heads<T, 4>(job, q, n_keys, kv_head, page_begin, page_end, to);
        break;
    }
    head += n;
  }
}

inline void attend_row(const AttentionJob& job, int64_t row, int kv_head, int64_t page_begin, int64_t page_end,
                       float* partial) {
  job.kv->kind == KvKind::bf16 ? attend_group<uint16_t>(job, row, kv_head, page_begin, page_end, partial)
                               : attend_group<float>(job, row, kv_head, page_begin, page_end, partial);
}

inline void merge_parts(const float* partial, int64_t n_parts, int64_t part_stride, int head_dim, float* out) {
  const float factor = kLog2E / std::sqrt(static_cast<float>(head_dim));
  float top = kMasked, divisor = 0;
  for (int64_t i = 0; i < n_parts; ++i) top = std::max(top, partial[i * part_stride + head_dim]);
  for (int d = 0; d < head_dim; ++d) out[d] = 0;
  for (int64_t i = 0; i < n_parts; ++i) {
    const float* part = partial + i * part_stride;
    const float scale = exp2(splat((part[head_dim] - top) * factor))[0];
    divisor += scale * part[head_dim + 1];
    for (int d = 0; d < head_dim; ++d) out[d] += scale * part[d];
  }
  for (int d = 0; d < head_dim; ++d) out[d] /= divisor;
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
