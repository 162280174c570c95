// SPDX-License-Identifier: Apache-2.0
// Where codes lie in a page of 64 tokens of one key/value head: [keys][values][64 key scales][64 value scales]. Keys
// lie token by token, values quad by quad: the codes of four tokens of one coordinate together, because PV contracts
// over tokens and an 8-bit matrix instruction takes four of them from one register.
//   8 bits  key: a byte a coordinate.             values of a quad: 4 bytes a coordinate, token 0 first.
//   4 bits  key: coordinate i in nibble i.        16 bits a coordinate, token j in nibble j.
//   3 bits  key: magnitudes, 2 bits each; signs.  a byte of magnitudes a coordinate; then a nibble of signs each.
//   2 bits  key: 2 bits a coordinate.             a byte a coordinate, token j in bits 2j and 2j + 1.
// All fields begin at the low bits. Host and device.
#pragma once
#include "firstlight/quant/turboquant_core.h"

namespace firstlight::turboquant {

inline constexpr int kPageSlots = 64;  ///< kPageTokens of kv/page_pool.h, which builds on this
inline constexpr int kQuad = 4;        ///< tokens whose values are interleaved

/// Sizes in bytes of one head's page. head_dim is 64, 128 or 256, bits 2, 3, 4 or 8.
struct PageShape {
  int head_dim, key_bits, value_bits;
  bool operator==(const PageShape&) const = default;
  FIRSTLIGHT_HD constexpr int key_bytes() const { return head_dim * key_bits / 8; }     ///< of one token
  FIRSTLIGHT_HD constexpr int quad_bytes() const { return head_dim * value_bits / 2; }  ///< values of four tokens
  FIRSTLIGHT_HD constexpr int values_at() const { return kPageSlots * key_bytes(); }
  FIRSTLIGHT_HD constexpr int key_scales_at() const { return values_at() + kPageSlots / kQuad * quad_bytes(); }
  FIRSTLIGHT_HD constexpr int value_scales_at() const { return key_scales_at() + 2 * kPageSlots; }
  FIRSTLIGHT_HD constexpr int bytes() const { return value_scales_at() + 2 * kPageSlots; }
};

/// Sets `count` bits at bit `at` of a field; they never straddle a byte. A byte of a key belongs to one token; those of
/// values hold several tokens' codes, so one thread writes a quad.
FIRSTLIGHT_TQ void put_bits(uint8_t* field, int at, int count, uint32_t value) {
  const uint32_t mask = ((1u << count) - 1) << (at % 8);
  field[at / 8] = static_cast<uint8_t>((field[at / 8] & ~mask) | (value << (at % 8) & mask));
}
FIRSTLIGHT_TQ uint32_t get_bits(const uint8_t* field, int at, int count) {
  return field[at / 8] >> (at % 8) & ((1u << count) - 1);
}

/// Code of coordinate i of a key, whose codes begin at `key`.
FIRSTLIGHT_TQ void put_key_code(uint8_t* key, int head_dim, int bits, int i, uint32_t code) {
  if (bits != 3) return put_bits(key, i * bits, bits, code);
  put_bits(key, i * 2, 2, code & 3u);
  put_bits(key + head_dim / 4, i, 1, code >> 2);
}
FIRSTLIGHT_TQ uint32_t key_code(const uint8_t* key, int head_dim, int bits, int i) {
  if (bits != 3) return get_bits(key, i * bits, bits);
  return get_bits(key, i * 2, 2) | get_bits(key + head_dim / 4, i, 1) << 2;
}

/// Code of coordinate i of token j of a quad, whose codes begin at `quad`. Leaves the other tokens' codes as they are.
FIRSTLIGHT_TQ void put_value_code(uint8_t* quad, int head_dim, int bits, int j, int i, uint32_t code) {
  if (bits != 3) return put_bits(quad, (i * kQuad + j) * bits, bits, code);
  put_bits(quad + i, j * 2, 2, code & 3u);
  put_bits(quad + head_dim, i * kQuad + j, 1, code >> 2);
}
FIRSTLIGHT_TQ uint32_t value_code(const uint8_t* quad, int head_dim, int bits, int j, int i) {
  if (bits != 3) return get_bits(quad, (i * kQuad + j) * bits, bits);
  return get_bits(quad + i, j * 2, 2) | get_bits(quad + head_dim, i * kQuad + j, 1) << 2;
}

}  // namespace firstlight::turboquant
