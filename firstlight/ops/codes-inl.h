// SPDX-License-Identifier: Apache-2.0
// Pages of TurboQuant codes as the kernels read them: a page at a time is expanded to the codebook's integers, one a
// byte, in the first-level cache (4 to 16 KB), and all further products are exact integers.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

namespace tq = firstlight::turboquant;

typedef int16_t VS __attribute__((vector_size(4 * FIRSTLIGHT_LANES)));  // two a lane of VI

/// Lane i: a[2i] * b[2i] + a[2i + 1] * b[2i + 1].
FIRSTLIGHT_INLINE VI multiply_pairs(VS a, VS b) {
#if FIRSTLIGHT_LANES == 16
  return reinterpret_cast<VI>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif FIRSTLIGHT_LANES == 8
  return reinterpret_cast<VI>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<VI>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const VI x = reinterpret_cast<VI>(a), y = reinterpret_cast<VI>(b);  // little-endian: the even one is the low half
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}
/// Bytes 0, 2, 4, … and 1, 3, 5, … of x, widened.
FIRSTLIGHT_INLINE VS even_bytes(VS x) { return (x << 8) >> 8; }
FIRSTLIGHT_INLINE VS odd_bytes(VS x) { return x >> 8; }

/// Lane i of the result is the sum of v[i]'s lanes.
template <int kDistance = kLanes / 2>
FIRSTLIGHT_INLINE VI sum_each(VI (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kDistance; ++i) {
    const VF a = reinterpret_cast<VF>(v[i]), b = reinterpret_cast<VF>(v[i + kDistance]);
    v[i] = reinterpret_cast<VI>(keep_halves<kDistance>(a, b, Lanes{})) +
           reinterpret_cast<VI>(swap_halves<kDistance>(a, b, Lanes{}));
  }
  if constexpr (kDistance > 1) return sum_each<kDistance / 2>(v);
  return v[0];
}

/// The levels of 4 bits: of code i at byte i, twice for the two halves of a register.
struct Levels {
  alignas(32) int8_t of[32];
  constexpr Levels() : of() {
    for (uint32_t i = 0; i < 32; ++i) of[i] = static_cast<int8_t>(tq::level<4>(i % 16));
  }
};
inline constexpr Levels kLevels4;

/// One codes' page of one head, and where its parts begin.
struct CodePage {
  const uint8_t* at;
  tq::PageShape shape;
  const uint8_t* keys() const { return at; }
  const uint8_t* values() const { return at + shape.values_at(); }
  const uint8_t* key_scales() const { return at + shape.key_scales_at(); }
  const uint8_t* value_scales() const { return at + shape.value_scales_at(); }
};
FIRSTLIGHT_INLINE CodePage code_page(const AttentionJob& job, int64_t index, int kv_head) {
  const KvBits bits = kv_bits(job.kv->kind);
  const tq::PageShape shape{job.kv->head_dim, bits.key, bits.value};
  const std::byte* page = job.kv->data + static_cast<uint64_t>(job.span->pages[index]) * job.kv->page_stride;
  return {reinterpret_cast<const uint8_t*>(page) + int64_t{kv_head} * shape.bytes(), shape};
}

/// 64 stored scales as floats.
FIRSTLIGHT_INLINE void read_scales(const uint8_t* from, float* to) {
  for (int i = 0; i < kPageTokens; i += kLanes) {
    const VU half = extend(load_raw<VH>(from + 2 * i));
    const VF normal = reinterpret_cast<VF>((half << 13) + (112u << 23)) * splat(0x1p-6f);
    const VF small = __builtin_convertvector(reinterpret_cast<VI>(half), VF) * splat(0x1p-30f);
    store(to + i, reinterpret_cast<VI>(half) < VI{} + 0x400 ? small : normal);
  }
}

/// Four codes of 2 or 3 bits at once: a byte holds four of 2 bits, or the magnitudes of four of 3 bits, whose signs are
/// a nibble. Bytes of four levels, the first lowest.
struct FourLevels {
  uint32_t of2[256], of3[256], negative[16];
  constexpr FourLevels() : of2(), of3(), negative() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      for (uint32_t j = 0; j < 4; ++j) {
        of2[byte] |= static_cast<uint32_t>(static_cast<uint8_t>(tq::level<2>(byte >> (2 * j) & 3))) << (8 * j);
        of3[byte] |= static_cast<uint32_t>(tq::level<3>(byte >> (2 * j) & 3)) << (8 * j);
        if (byte < 16 && (byte >> j & 1) != 0) negative[byte] |= 0xffu << (8 * j);
      }
    }
  }
};
inline constexpr FourLevels kFourLevels;

/// n groups of four codes of 2 bits.
FIRSTLIGHT_INLINE void expand2(const uint8_t* codes, int64_t n, int8_t* to) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + 4 * i, &kFourLevels.of2[codes[i]], 4);
}
/// n groups of four codes of 3 bits; n is even.
FIRSTLIGHT_INLINE void expand3(const uint8_t* magnitudes, const uint8_t* signs, int64_t n, int8_t* to) {
  for (int64_t i = 0; i < n; i += 2) {
    for (int64_t k = 0; k < 2; ++k) {
      const uint32_t flip = kFourLevels.negative[signs[i / 2] >> (4 * k) & 15];
      // Two's complement byte by byte; no level is 0, so no sum carries into the next byte.
      const uint32_t four = (kFourLevels.of3[magnitudes[i + k]] ^ flip) + (flip & 0x01010101u);
      std::memcpy(to + 4 * (i + k), &four, 4);
    }
  }
}

/// Keys or values of fewer than 4 bits: `n_fields` fields (tokens, or quads) of field_bytes hold n groups each.
FIRSTLIGHT_INLINE const int8_t* expand_fields(const uint8_t* from, int bits, int64_t n_fields, int64_t field_bytes,
                                              int64_t n, int8_t* to) {
  for (int64_t field = 0; field < n_fields; ++field, from += field_bytes) {
    int8_t* at = to + field * 4 * n;
    bits == 2 ? expand2(from, n, at) : expand3(from, from + n, n, at);
  }
  return to;
}

/// The page's keys [64][head_dim], one level a byte: where they lie, or in `to`. Coordinates stand in order, those of 4
/// bits the even ones before the odd ones (as nibbles fall apart); code_q stands likewise.
FIRSTLIGHT_INLINE const int8_t* keys_of(const CodePage& page, int8_t* to) {
  if (page.shape.key_bits == 8) return reinterpret_cast<const int8_t*>(page.keys());
  if (page.shape.key_bits < 4) {
    return expand_fields(page.keys(), page.shape.key_bits, kPageTokens, page.shape.key_bytes(), page.shape.head_dim / 4,
                         to);
  }
  const int64_t half = page.shape.head_dim / 2;
  const uint8_t* from = page.keys();
  for (int slot = 0; slot < kPageTokens; ++slot, from += half, to += 2 * half) {
#if FIRSTLIGHT_LANES >= 8
    const __m256i levels = _mm256_load_si256(reinterpret_cast<const __m256i*>(kLevels4.of));
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t i = 0; i < half; i += 32) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      const __m256i even = _mm256_shuffle_epi8(levels, _mm256_and_si256(x, low));
      const __m256i odd = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), even);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half + i), odd);
    }
#else
    for (int64_t i = 0; i < half; ++i) to[i] = kLevels4.of[from[i] & 15], to[half + i] = kLevels4.of[from[i] >> 4];
#endif
  }
  return to - kPageTokens * 2 * half;
}

/// The page's values [16 quads][head_dim][4 tokens], one level a byte: where they lie, or in `to`.
FIRSTLIGHT_INLINE const int8_t* values_of(const CodePage& page, int8_t* to) {
  if (page.shape.value_bits == 8) return reinterpret_cast<const int8_t*>(page.values());
  if (page.shape.value_bits < 4) {
    return expand_fields(page.values(), page.shape.value_bits, kPageTokens / tq::kQuad, page.shape.quad_bytes(),
                         page.shape.head_dim, to);
  }
  const int64_t n = int64_t{kPageTokens} / tq::kQuad * page.shape.head_dim;
  for (int64_t i = 0; i < n; i += kLanes) {
    const VU word = extend(load_raw<VH>(page.values() + 2 * i));  // nibbles 3 2 1 0
    const VU two = (word | word << 8) & 0x00ff00ffu;              // 3 2 in the third byte, 1 0 in the first
    VU codes = (two | two << 4) & 0x0f0f0f0fu;
#if FIRSTLIGHT_LANES == 16
    alignas(64) int8_t table[64];
    std::memcpy(table, kLevels4.of, 32), std::memcpy(table + 32, kLevels4.of, 32);
    codes = reinterpret_cast<VU>(_mm512_shuffle_epi8(load_raw<__m512i>(table), reinterpret_cast<__m512i>(codes)));
#elif FIRSTLIGHT_LANES == 8
    codes = reinterpret_cast<VU>(_mm256_shuffle_epi8(load_raw<__m256i>(kLevels4.of), reinterpret_cast<__m256i>(codes)));
#else
    uint8_t bytes[4 * kLanes];
    std::memcpy(bytes, &codes, sizeof bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(kLevels4.of[byte]);
    std::memcpy(&codes, bytes, sizeof bytes);
#endif
    std::memcpy(to + 4 * i, &codes, sizeof codes);
  }
  return to;
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
