// SPDX-License-Identifier: Apache-2.0
// Attention of single rows over pages of codes. QK: integers of 15 bits times levels, exact. PV: the probabilities of
// a page, times the values' scales, become integers of 15 bits too, so a page's sum is exact given these. Sums of
// values stay rotated until the run of pages ends.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

/// products[h * 64 + slot] = Σ levels * q of the head, for kHeads heads whose queries stand apart as even and odd
/// coordinates: [head][2][head_dim / 2].
template <int kHeads>
FIRSTLIGHT_INLINE void multiply_keys(const int8_t* keys, const int16_t* q, int64_t d, int32_t* products) {
  for (int slot = 0; slot < kPageTokens; slot += kLanes) {
    VI lanes[kHeads][kLanes];
    for (int s = 0; s < kLanes; ++s) {
      VI sums[kHeads];
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) sums[h] = VI{};
      for (int64_t i = 0; i < d; i += 4 * kLanes) {
        const VS x = load_raw<VS>(keys + (slot + s) * d + i);
        const VS even = even_bytes(x), odd = odd_bytes(x);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          const int16_t* at = q + h * d + i / 2;
          sums[h] += multiply_pairs(even, load_raw<VS>(at)) + multiply_pairs(odd, load_raw<VS>(at + d / 2));
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) lanes[h][s] = sums[h];
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const VI sum = sum_each(lanes[h]);
      std::memcpy(products + h * kPageTokens + slot, &sum, sizeof sum);
    }
  }
}

/// Splits a query into its even and its odd coordinates (of the expanded order).
FIRSTLIGHT_INLINE void split_query(const int16_t* q, int64_t d, int16_t* to) {
  for (int64_t i = 0; i < d / 2; ++i) to[i] = q[2 * i], to[d / 2 + i] = q[2 * i + 1];
}

/// A run of pages of one row and kHeads heads.
template <int kHeads>
struct CodeRun {
  int64_t d;
  float factor;
  float* partial;  ///< [kHeads][head_dim + 2], as attend_row has it
  const float* unit;
  alignas(64) int16_t q[kHeads * 256];
  alignas(64) int8_t levels[kPageTokens * 256];
  alignas(64) int32_t products[kHeads * kPageTokens];
  alignas(64) float key_scales[kPageTokens], value_scales[kPageTokens];
  alignas(64) float p[kPageTokens];
  int32_t pairs[kHeads][kPageTokens / 4][2];  ///< of each quad: p of tokens 0 and 2, of 1 and 3
  float scale[kHeads], worth[kHeads];         ///< of older sums; of one unit of p
};

/// Scores → p as integers; raises the maximum and notes the scale of older sums.
template <int kHeads>
FIRSTLIGHT_INLINE void soften_codes(CodeRun<kHeads>& run, int h) {
  float& maximum = run.partial[h * (run.d + 2) + run.d];
  float& divisor = run.partial[h * (run.d + 2) + run.d + 1];
  VF tops = splat(maximum);
  for (int i = 0; i < kPageTokens; i += kLanes) {
    const VI product = load_raw<VI>(run.products + h * kPageTokens + i);
    const VF score = __builtin_convertvector(product, VF) * load(run.key_scales + i) * splat(run.unit[h]);
    store(run.p + i, score);
    tops = max(tops, score);
  }
  const float top = largest(tops);
  VF total{}, highest{};
  for (int i = 0; i < kPageTokens; i += kLanes) {
    const VF p = exp2((load(run.p + i) - splat(top)) * splat(run.factor));
    total = total + p;
    const VF weight = p * load(run.value_scales + i);
    store(run.p + i, weight);
    highest = max(highest, weight);
  }
  const float most = largest(highest);
  run.scale[h] = exp2(splat((maximum - top) * run.factor))[0];
  run.worth[h] = most / 16256;
  maximum = top;
  divisor = divisor * run.scale[h] + sum(total);
  const float inverse = most > 0x1p-100f ? 16256 / most : 0.0f;
  const VF magic = splat(12582912.0f);  // rounds to an integer that then stands in the low bits
  int16_t integers[kPageTokens];
  for (int i = 0; i < kPageTokens; i += kLanes) {
    const VF rounded = load(run.p + i) * splat(inverse) + magic;
    int32_t words[kLanes];
    std::memcpy(words, &rounded, sizeof words);
    for (int k = 0; k < kLanes; ++k) integers[i + k] = static_cast<int16_t>(words[k]);
  }
  for (int quad = 0; quad < kPageTokens / 4; ++quad) {
    const int16_t* at = integers + 4 * quad;
    run.pairs[h][quad][0] = at[0] | at[2] << 16;
    run.pairs[h][quad][1] = at[1] | at[3] << 16;
  }
}

/// partial = scale * partial + worth * Σ p * levels.
template <int kHeads>
FIRSTLIGHT_INLINE void mix_codes(CodeRun<kHeads>& run, const int8_t* values) {
  for (int64_t i = 0; i < run.d; i += kLanes) {
    VI sums[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sums[h] = VI{};
    for (int quad = 0; quad < kPageTokens / 4; ++quad) {
      const VS x = load_raw<VS>(values + (quad * run.d + i) * 4);
      const VS even = even_bytes(x), odd = odd_bytes(x);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sums[h] += multiply_pairs(even, reinterpret_cast<VS>(VI{} + run.pairs[h][quad][0])) +
                   multiply_pairs(odd, reinterpret_cast<VS>(VI{} + run.pairs[h][quad][1]));
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      float* to = run.partial + h * (run.d + 2) + i;
      store(to, load(to) * splat(run.scale[h]) + __builtin_convertvector(sums[h], VF) * splat(run.worth[h]));
    }
  }
}

template <int kHeads>
void attend_codes(const AttentionJob& job, int64_t row, int head, int64_t page_begin, int64_t page_end,
                  float* partial) {
  CodeRun<kHeads> run;
  const int64_t d = run.d = job.kv->head_dim;
  const int kv_head = head / job.group;
  run.factor = kLog2E / std::sqrt(static_cast<float>(d));
  run.partial = partial;
  run.unit = job.code_unit + row * job.n_heads + head;
  for (int h = 0; h < kHeads; ++h) {
    split_query(job.code_q + (row * job.n_heads + head + h) * d, d, run.q + h * d);
    for (int64_t i = 0; i < d; ++i) partial[h * (d + 2) + i] = 0;
    partial[h * (d + 2) + d] = kMasked;
    partial[h * (d + 2) + d + 1] = 0;
  }
  for (int64_t index = page_begin; index < page_end; ++index) {
    const CodePage page = code_page(job, index, kv_head);
    if (index + 1 < page_end) fetch(code_page(job, index + 1, kv_head).at, page.shape.bytes());
    read_scales(page.key_scales(), run.key_scales);
    read_scales(page.value_scales(), run.value_scales);
    multiply_keys<kHeads>(keys_of(page, run.levels), run.q, d, run.products);
    for (int h = 0; h < kHeads; ++h) soften_codes(run, h);
    mix_codes(run, values_of(page, run.levels));
  }
  for (int h = 0; h < kHeads; ++h) {
    float* sums = partial + h * (d + 2);
    job.codec->unrotate(static_cast<int>(d), job.kv->signs[2 * kv_head + 1], sums, sums);
  }
}

/// attend_row for any kind of cache.
inline void attend_any_row(const AttentionJob& job, int64_t row, int kv_head, int64_t page_begin, int64_t page_end,
                           float* partial) {
  if (!is_compressed(job.kv->kind)) return attend_row(job, row, kv_head, page_begin, page_end, partial);
  for (int g = 0; g < job.group;) {
    const int n = std::min(4, job.group - g), head = kv_head * job.group + g;
    float* to = partial + g * (job.kv->head_dim + 2);
    switch (n) {
      case 1:
        attend_codes<1>(job, row, head, page_begin, page_end, to);
        break;
      case 2:
        attend_codes<2>(job, row, head, page_begin, page_end, to);
        break;
      case 3:
        attend_codes<3>(job, row, head, page_begin, page_end, to);
        break;
      case 4:
        attend_codes<4>(job, row, head, page_begin, page_end, to);
        break;
    }
    g += n;
  }
}

inline void code_products(const AttentionJob& job, int64_t row, int head, int64_t page, int32_t* to) {
  const int64_t d = job.kv->head_dim;
  alignas(64) int8_t levels[kPageTokens * 256];
  alignas(64) int16_t q[256];
  split_query(job.code_q + (row * job.n_heads + head) * d, d, q);
  multiply_keys<1>(keys_of(code_page(job, page, head / job.group), levels), q, d, to);
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
