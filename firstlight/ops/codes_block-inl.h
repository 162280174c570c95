// SPDX-License-Identifier: Apache-2.0
// Attention of blocks of rows over pages of codes by the register tile. Queries fall into two parts, 128 * high + low,
// whose products with levels are integers below 2^24: exact as floats and as bf16. Pages of codes come first; what they
// give is rotated back and waits in `out` while the exact pages follow.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

/// Levels of keys [64][d] as the tile's columns: floats, or bf16 (7 bits and a sign: exact).
template <class Step>
FIRSTLIGHT_INLINE TileColumns columns_of_keys(const int8_t* keys, int64_t d, float* to) {
  if constexpr (Step::kValues == 1) {
    for (int64_t i = 0; i < kPageTokens * d; ++i) to[i] = static_cast<float>(keys[i]);
    return {reinterpret_cast<const char*>(to), d * 4, 4, kPageTokens};
  }
  uint16_t* narrow = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < kPageTokens * d; ++i) {
    narrow[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(keys[i])) >> 16);
  }
  return {reinterpret_cast<const char*>(to), d * 2, 4, kPageTokens};
}

/// Levels of values [16][d][4] as columns: [64][d] floats, or [32][d] pairs of bf16.
template <class Step>
FIRSTLIGHT_INLINE TileColumns columns_of_values(const int8_t* values, int64_t d, float* to) {
  for (int64_t quad = 0; quad < kPageTokens / 4; ++quad) {
    for (int64_t i = 0; i < d; ++i) {
      const int8_t* at = values + (quad * d + i) * 4;
      if constexpr (Step::kValues == 1) {
        for (int j = 0; j < 4; ++j) to[(quad * 4 + j) * d + i] = static_cast<float>(at[j]);
      } else {
        for (int j = 0; j < 2; ++j) {
          const uint32_t first = __builtin_bit_cast(uint32_t, static_cast<float>(at[2 * j]));
          const uint32_t second = __builtin_bit_cast(uint32_t, static_cast<float>(at[2 * j + 1]));
          const uint32_t pair = first >> 16 | second;  // levels have 7 bits: the halves cut off are zero
          std::memcpy(to + (quad * 2 + j) * d + i, &pair, 4);
        }
      }
    }
  }
  return {reinterpret_cast<const char*>(to), 4, d * 4, d};
}

/// scores = (128 * scores + low) * key scale * unit, from integers.
FIRSTLIGHT_INLINE void join_scores(const BlockScratch& t, int64_t at, int64_t n, const float* key_scales) {
  for (int64_t slot = 0; slot < kPageTokens; ++slot) {
    for (int64_t r = at; r < at + n; r += kLanes) {
      const VI high = __builtin_convertvector(load(t.scores + slot * kBlockRows + r), VI);
      const VI low = __builtin_convertvector(load(t.low + slot * kBlockRows + r), VI);
      const VF product = __builtin_convertvector(high * 128 + low, VF);
      store(t.scores + slot * kBlockRows + r, product * splat(key_scales[slot]) * load(t.unit + r));
    }
  }
}

/// p *= value scale, [64][rows]. With pairs of bf16: p becomes [32][rows] pairs, what rounding left goes to t.low.
template <class Step>
FIRSTLIGHT_INLINE void weigh(const BlockScratch& t, int64_t at, int64_t n, const float* value_scales) {
  for (int64_t slot = 0; slot < kPageTokens; slot += 2) {
    for (int64_t r = at; r < at + n; r += kLanes) {
      const VF a = load(t.p + slot * kBlockRows + r) * splat(value_scales[slot]);
      const VF b = load(t.p + (slot + 1) * kBlockRows + r) * splat(value_scales[slot + 1]);
      if constexpr (Step::kValues == 1) {
        store(t.p + slot * kBlockRows + r, a);
        store(t.p + (slot + 1) * kBlockRows + r, b);
      } else {
#if FIRSTLIGHT_BF16_DOT
        const VU mask = VU{} + 0xffff0000u;  // cut, not rounded: what is left is exact
        const VU a_high = reinterpret_cast<VU>(a) & mask, b_high = reinterpret_cast<VU>(b) & mask;
        const VU a_low = reinterpret_cast<VU>(a - reinterpret_cast<VF>(a_high));
        const VU b_low = reinterpret_cast<VU>(b - reinterpret_cast<VF>(b_high));
        const VU high = a_high >> 16 | b_high, low = a_low >> 16 | (b_low & mask);
        std::memcpy(t.p + slot / 2 * kBlockRows + r, &high, sizeof high);
        std::memcpy(t.low + slot / 2 * kBlockRows + r, &low, sizeof low);
#endif
      }
    }
  }
}

/// Adds one page of codes, all of whose keys every row sees.
template <class Step>
void attend_code_page(const AttentionJob& job, const Block& b, const BlockScratch& t, int64_t index) {
  using Word = typename Step::Word;
  const int64_t d = job.kv->head_dim, steps = d / Step::kValues;
  const CodePage page = code_page(job, index, b.kv_head);
  alignas(64) float key_scales[kPageTokens], value_scales[kPageTokens];
  static constexpr auto kOnes = [] {
    struct {
      alignas(64) float of[kBlockRows];
    } ones{};
    for (float& each : ones.of) each = 1;
    return ones;
  }();
  read_scales(page.key_scales(), key_scales);
  read_scales(page.value_scales(), value_scales);
  const TileColumns keys = columns_of_keys<Step>(keys_of(page, t.levels), d, t.keys);
  const TileColumns values = columns_of_values<Step>(values_of(page, t.levels), d, t.values);
  for (int64_t sub = 0; sub * kTileRows < b.rows; ++sub) {
    const int64_t at = sub * kTileRows;
    const int vectors = vectors_of(b.rows, sub);
    const int64_t n = vectors * kLanes;
    const auto multiply_keys_by = [&](const float* q, float* to) {
      tile_columns<Step>(vectors, reinterpret_cast<const Word*>(q) + at * steps, n, keys, steps, false, to + at,
                         kBlockRows, nullptr);
    };
    multiply_keys_by(t.q, t.scores);
    multiply_keys_by(t.q_low, t.low);
    join_scores(t, at, n, key_scales);
    soften_rows(vectors, t.scores + at, kPageTokens, b.factor, t.maximum + at, t.divisor + at, t.scale + at, t.p + at,
                false);
    weigh<Step>(t, at, n, value_scales);
    const auto add_values = [&](const float* p, const float* scale) {
      tile_columns<Step>(vectors, reinterpret_cast<const Word*>(p + at), kBlockRows, values,
                         kPageTokens / Step::kValues, false, t.out + at, kBlockRows, scale);
    };
    add_values(t.p, t.scale + at);
    if (Step::kValues == 2) add_values(t.low, kOnes.of);
  }
}

/// The rows' integer queries in two parts, packed: t.q and t.q_low. Uses t.keys and t.values.
template <class Step>
FIRSTLIGHT_INLINE void pack_code_queries(const AttentionJob& job, const Block& b, const BlockScratch& t) {
  const int64_t d = job.kv->head_dim;
  for (int64_t r = 0; r < kBlockRows; ++r) {
    const int64_t at = (b.row + r) * job.n_heads + b.head;
    t.unit[r] = r < b.rows ? job.code_unit[at] : 0;
    for (int64_t i = 0; r < b.rows && i < d; ++i) {
      const int q = job.code_q[at * d + i], high = (q + 64) >> 7;
      t.keys[r * d + i] = static_cast<float>(high);
      t.values[r * d + i] = static_cast<float>(q - 128 * high);
    }
  }
  using Word = typename Step::Word;
  pack_block<Step>(t.keys, d, b.rows, d, reinterpret_cast<Word*>(t.q));
  pack_block<Step>(t.values, d, b.rows, d, reinterpret_cast<Word*>(t.q_low));
}

/// The sums over codes, rotated back but not divided, wait in `out`; the block goes on with none.
FIRSTLIGHT_INLINE void set_aside(const AttentionJob& job, const Block& b, const BlockScratch& t) {
  const int64_t d = job.kv->head_dim;
  float* out = job.out + b.row * job.out_stride + b.head * d;
  store_transposed<false>(t.out, b.rows, d, out, job.out_stride);
  for (int64_t r = 0; r < b.rows; ++r) {
    float* sums = out + r * job.out_stride;
    job.codec->unrotate(static_cast<int>(d), job.kv->signs[2 * b.kv_head + 1], sums, sums);
  }
  for (int64_t i = 0; i < b.padded(); ++i) t.code_maximum[i] = t.maximum[i];
  for (int64_t i = 0; i < d * kBlockRows; i += kLanes) store(t.out + i, VF{});
}

/// What waits in `out`, as a part of the whole softmax.
FIRSTLIGHT_INLINE void weigh_set_aside(const AttentionJob& job, const Block& b, const BlockScratch& t) {
  const int64_t d = job.kv->head_dim;
  for (int64_t r = 0; r < b.rows; ++r) {
    const float share = exp2(splat((t.code_maximum[r] - t.maximum[r]) * b.factor))[0] / t.divisor[r];
    float* sums = job.out + (b.row + r) * job.out_stride + b.head * d;
    for (int64_t i = 0; i < d; i += kLanes) store(sums + i, load(sums + i) * splat(share));
  }
}

template <class Step>
void attend_code_block(const AttentionJob& job, int head, int64_t row, int64_t rows, void* scratch_bytes) {
  const int64_t d = job.kv->head_dim;
  const Block b(job, head, row, rows);
  const BlockScratch t(scratch_bytes, d);
  const int64_t last = b.last / kPageTokens, code_end = std::min(last + 1 - kExactTail, job.span->exact_from);
  begin_block(b, t, d);
  if (code_end > 1) {
    pack_code_queries<Step>(job, b, t);
    for (int64_t page = 1; page < code_end; ++page) attend_code_page<Step>(job, b, t, page);
    set_aside(job, b, t);
  }
  pack_block<Step>(job.q + row * job.q_stride + head * d, job.q_stride, rows, d,
                   reinterpret_cast<typename Step::Word*>(t.q));
  for (int64_t page = 0; page <= last; ++page) {
    if (is_exact(page, last) || page >= code_end) attend_page<Step>(*job.exact, b, t, page);
  }
  if (code_end <= 1) return finish_block<false>(job, b, t);
  weigh_set_aside(job, b, t);
  finish_block<true>(job, b, t);
}

/// attend_block for any kind of cache.
inline void attend_any_block(const AttentionJob& job, int head, int64_t row, int64_t rows, void* scratch) {
  if (!is_compressed(job.kv->kind)) return attend_block(job, head, row, rows, scratch);
#if FIRSTLIGHT_BF16_DOT
  return attend_code_block<Bf16Step>(job, head, row, rows, scratch);
#else
  attend_code_block<F32Step>(job, head, row, rows, scratch);
#endif
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
