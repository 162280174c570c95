// SPDX-License-Identifier: Apache-2.0
// Attention over pages with a running softmax in base 2: for blocks of 64 rows by the register tile (scores lie
// [slot][row], so that maximum and sum run down columns without crossing lanes), and for single rows by dot products.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

constexpr float kMasked = -1e30f;  // finite, so that no difference of two is NaN
constexpr float kLog2E = 1.44269504f;

/// Where the keys (which 0) or values (1) of a head begin in page number `index` of the sequence: [64 slots][head_dim].
FIRSTLIGHT_INLINE const std::byte* page_of(const AttentionJob& job, int64_t index, int which, int kv_head) {
  const KvLayer& kv = *job.kv;
  const int64_t element = kv.kind == KvKind::bf16 ? 2 : 4;
  return kv.data + static_cast<uint64_t>(job.span->pages[index]) * kv.page_stride +
         (int64_t{which} * kv.n_kv_heads + kv_head) * kPageTokens * kv.head_dim * element;
}

/// A thread's scratch for one block. Words of p hold floats, or pairs of bf16. Those named low, and what follows them,
/// are for codes only (codes_block-inl.h).
struct BlockScratch {
  float *q, *scores, *p, *keys, *values, *out, *maximum, *divisor, *scale;
  float *q_low, *low, *unit, *code_maximum;
  int8_t* levels;
  static int64_t floats(int64_t d) {
    return 3 * kBlockRows * d + kBlockRows * kPageTokens * 3 + 2 * kPageTokens * d + 5 * kBlockRows +
           kPageTokens * d / 4;
  }
  BlockScratch(void* at, int64_t d) {
    q = static_cast<float*>(at);
    scores = q + kBlockRows * d;
    p = scores + kBlockRows * kPageTokens;
    keys = p + kBlockRows * kPageTokens;
    values = keys + kPageTokens * d;
    out = values + kPageTokens * d;
    maximum = out + kBlockRows * d;
    divisor = maximum + kBlockRows;
    scale = divisor + kBlockRows;
    q_low = scale + kBlockRows;
    low = q_low + kBlockRows * d;
    unit = low + kBlockRows * kPageTokens;
    code_maximum = unit + kBlockRows;
    levels = reinterpret_cast<int8_t*>(code_maximum + kBlockRows);
  }
};

inline int64_t attend_scratch_bytes(int head_dim) { return (BlockScratch::floats(head_dim) + 16) * 4; }

/// Hides slots that lie after a row: slot s of the page is visible to row r iff s + first_slot ≤ r.
FIRSTLIGHT_INLINE void mask(float* scores, int64_t n_slots, int64_t n_rows, int64_t first_slot) {
  for (int64_t s = 0; s < n_slots; ++s) {
    const int64_t first_row = s + first_slot;
    for (int64_t r = 0; r < n_rows && r < first_row; r += kLanes) {
      const VI row = iota() + static_cast<int32_t>(r);
      float* at = scores + s * kBlockRows + r;
      store(at, row >= VI{} + static_cast<int32_t>(first_row) ? load(at) : splat(kMasked));
    }
  }
}

/// Turns kVectors * kLanes rows of scores into powers 2^((s - maximum) * factor), raises maximum, and notes the scale
/// of older sums.
template <int kVectors>
void soften(float* scores, int64_t n_slots, float factor, float* maximum, float* divisor, float* scale, float* p,
            bool pairs) {
  VF top[kVectors], base[kVectors], total[kVectors] = {};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) top[v] = load(maximum + v * kLanes);
  for (int64_t s = 0; s < n_slots; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) top[v] = max(top[v], load(scores + s * kBlockRows + v * kLanes));
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store(scale + v * kLanes, exp2((load(maximum + v * kLanes) - top[v]) * splat(factor)));
    store(maximum + v * kLanes, top[v]);
    base[v] = top[v] * splat(-factor);
  }
  for (int64_t s = 0; s < n_slots; s += 2) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const VF first = exp2(load(scores + s * kBlockRows + v * kLanes) * splat(factor) + base[v]);
      const VF second =
          s + 1 < n_slots ? exp2(load(scores + (s + 1) * kBlockRows + v * kLanes) * splat(factor) + base[v]) : VF{};
      total[v] = total[v] + first;
      total[v] = total[v] + second;
#if FIRSTLIGHT_BF16_DOT
      if (pairs) {
        const VU low = extend(reinterpret_cast<VH>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(first))));
        const VU high = extend(reinterpret_cast<VH>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(second))));
        const VU both = low | (high << 16);
        std::memcpy(p + s / 2 * kBlockRows + v * kLanes, &both, sizeof both);
        continue;
      }
#endif
      (void)pairs;
      store(p + s * kBlockRows + v * kLanes, first);
      store(p + (s + 1) * kBlockRows + v * kLanes, second);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    store(divisor + v * kLanes, load(divisor + v * kLanes) * load(scale + v * kLanes) + total[v]);
}

FIRSTLIGHT_INLINE void soften_rows(int vectors, float* scores, int64_t n_slots, float factor, float* maximum,
                                   float* divisor, float* scale, float* p, bool pairs) {
  switch (vectors) {
    case 1:
      return soften<1>(scores, n_slots, factor, maximum, divisor, scale, p, pairs);
    case 2:
      return soften<2>(scores, n_slots, factor, maximum, divisor, scale, p, pairs);
    case 3:
      return soften<3>(scores, n_slots, factor, maximum, divisor, scale, p, pairs);
    case 4:
      return soften<4>(scores, n_slots, factor, maximum, divisor, scale, p, pairs);
  }
}

#if FIRSTLIGHT_BF16_DOT
/// [slots][d] bf16 → pairs of slots [slots / 2][d] dwords; a missing last slot is zero.
FIRSTLIGHT_INLINE void interleave(const uint16_t* from, int64_t n_slots, int64_t d, uint32_t* to) {
  for (int64_t s = 0; s < n_slots; s += 2) {
    const uint16_t *a = from + s * d, *b = a + d;
    const bool both = s + 1 < n_slots;
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
      const VU low = extend(load_raw<VH>(a + i));
      const VU high = both ? extend(load_raw<VH>(b + i)) : VU{};
      const VU pair = low | (high << 16);
      std::memcpy(to + s / 2 * d + i, &pair, sizeof pair);
    }
    for (; i < d; ++i) to[s / 2 * d + i] = a[i] | (both ? static_cast<uint32_t>(b[i]) << 16 : 0u);
  }
}
#endif

/// The keys or values of a page as floats: where they lie, or widened into `to`.
FIRSTLIGHT_INLINE const float* floats_of(const AttentionJob& job, int64_t page, int which, int kv_head, int64_t n_slots,
                                         float* to) {
  const std::byte* at = page_of(job, page, which, kv_head);
  if (job.kv->kind == KvKind::f32) return reinterpret_cast<const float*>(at);
  widen(reinterpret_cast<const uint16_t*>(at), n_slots * job.kv->head_dim, to);
  return to;
}

/// A block of rows of one head on its way over the pages.
struct Block {
  int head, kv_head;
  int64_t row, rows, first, last;  ///< first row within the span, and the positions of the first and the last row
  float factor;
  int64_t padded() const { return (rows + kLanes - 1) / kLanes * kLanes; }
  Block(const AttentionJob& job, int h, int64_t r, int64_t n)
      : head(h),
        kv_head(h / job.group),
        row(r),
        rows(n),
        first(job.span->position + r),
        last(first + n - 1),
        factor(kLog2E / std::sqrt(static_cast<float>(job.kv->head_dim))) {}
};

FIRSTLIGHT_INLINE void begin_block(const Block& b, const BlockScratch& t, int64_t d) {
  for (int64_t i = 0; i < b.padded(); ++i) t.maximum[i] = kMasked, t.divisor[i] = 0;
  for (int64_t i = 0; i < d * kBlockRows; i += kLanes) store(t.out + i, VF{});
}

/// Adds one page of keys and values to the block's running softmax; t.q holds the packed queries.
template <class Step>
void attend_page(const AttentionJob& job, const Block& b, const BlockScratch& t, int64_t page) {
  constexpr bool kPairs = Step::kValues == 2;
  using Word = typename Step::Word;
  const int64_t d = job.kv->head_dim, steps = (d + Step::kValues - 1) / Step::kValues;
  const int64_t n_slots = std::min<int64_t>(kPageTokens, b.last + 1 - page * kPageTokens);
  TileColumns keys, values;
  if constexpr (kPairs) {
#if FIRSTLIGHT_BF16_DOT
    keys = {reinterpret_cast<const char*>(page_of(job, page, 0, b.kv_head)), d * 2, 4, n_slots};
    interleave(reinterpret_cast<const uint16_t*>(page_of(job, page, 1, b.kv_head)), n_slots, d,
               reinterpret_cast<uint32_t*>(t.values));
    values = {reinterpret_cast<const char*>(t.values), 4, d * 4, d};
#endif
  } else {
    keys = {reinterpret_cast<const char*>(floats_of(job, page, 0, b.kv_head, n_slots, t.keys)), d * 4, 4, n_slots};
    values = {reinterpret_cast<const char*>(floats_of(job, page, 1, b.kv_head, n_slots, t.values)), 4, d * 4, d};
  }
  for (int64_t sub = 0; sub * kTileRows < b.rows; ++sub) {
    const int64_t at = sub * kTileRows;
    if (page * kPageTokens > b.first + std::min(at + kTileRows, b.rows) - 1)
      continue;  // all of it lies after these rows
    const int vectors = vectors_of(b.rows, sub);
    float* scores = t.scores + at;
    float* p = t.p + at;
    tile_columns<Step>(vectors, reinterpret_cast<const Word*>(t.q) + at * steps, vectors * kLanes, keys,
                       d / Step::kValues, d % Step::kValues != 0, scores, kBlockRows, nullptr);
    if (page * kPageTokens + n_slots - 1 > b.first + at)
      mask(scores, n_slots, vectors * kLanes, page * kPageTokens - b.first - at);
    soften_rows(vectors, scores, n_slots, b.factor, t.maximum + at, t.divisor + at, t.scale + at, p, kPairs);
    const int64_t value_steps = kPairs ? (n_slots + 1) / 2 : n_slots;
    tile_columns<Step>(vectors, reinterpret_cast<const Word*>(p), kBlockRows, values, value_steps, false, t.out + at,
                       kBlockRows, t.scale + at);
  }
}

/// out (+)= the block's sums, divided.
template <bool kAdd>
FIRSTLIGHT_INLINE void finish_block(const AttentionJob& job, const Block& b, const BlockScratch& t) {
  const int64_t d = job.kv->head_dim;
  for (int64_t r = 0; r < b.padded(); r += kLanes) {
    const VF inverse = splat(1.0f) / load(t.divisor + r);
    for (int64_t i = 0; i < d; ++i) store(t.out + i * kBlockRows + r, load(t.out + i * kBlockRows + r) * inverse);
  }
  store_transposed<kAdd>(t.out, b.rows, d, job.out + b.row * job.out_stride + b.head * d, job.out_stride);
}

template <class Step>
void attend_block_with(const AttentionJob& job, int head, int64_t row, int64_t rows, void* scratch_bytes) {
  const int64_t d = job.kv->head_dim;
  const Block b(job, head, row, rows);
  const BlockScratch t(scratch_bytes, d);
  pack_block<Step>(job.q + row * job.q_stride + head * d, job.q_stride, rows, d,
                   reinterpret_cast<typename Step::Word*>(t.q));
  begin_block(b, t, d);
  for (int64_t page = 0; page * kPageTokens <= b.last; ++page) attend_page<Step>(job, b, t, page);
  finish_block<false>(job, b, t);
}

inline void attend_block(const AttentionJob& job, int head, int64_t row, int64_t rows, void* scratch) {
#if FIRSTLIGHT_BF16_DOT
  if (job.kv->kind == KvKind::bf16) return attend_block_with<Bf16Step>(job, head, row, rows, scratch);
#endif
  attend_block_with<F32Step>(job, head, row, rows, scratch);
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
