// SPDX-License-Identifier: Apache-2.0
// Codes in shared memory become the bf16 operands of Hopper's attention, also there: a page at a time, by a warpgroup.
// Keys as tensor copies leave bf16 pages; values as columns, the 64 tokens of a page in 128 bytes a coordinate, which
// is how codes of four tokens lie together.
#pragma once
#include "firstlight/ops/attend_hopper_levels_cuda.cuh"
#include "firstlight/ops/attend_hopper_pages_cuda.cuh"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::cuda {

inline constexpr int kExpanders = 128;

__device__ __forceinline__ uint4 load_shared(uint32_t at) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at));
  return x;
}
__device__ __forceinline__ void store_shared(uint32_t at, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ float load_scale(uint32_t at) {
  uint16_t stored;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(stored) : "r"(at));
  return worth_of(stored);
}

/// A page's keys at `codes` to `to`, 16 bytes at a time. Which thread takes which: eight lanes next to one another meet
/// no bank twice, neither here nor there.
template <int kDim, int kBits>
__device__ __forceinline__ void expand_keys(const ExpandTables& tables, uint32_t codes, uint32_t scales, uint32_t to) {
  constexpr int kPieces = kDim * kBits / 128, kOf = 16 / kBits;  // 16 bytes of a key; of these, of levels
  const int thread = static_cast<int>(threadIdx.x) % kExpanders;
#pragma unroll 1
  for (int i = 0; i < kPageTokens * kPieces / kExpanders; ++i) {
    int slot = thread % kPageTokens, first;
    if constexpr (kDim == 64) {
      slot = (i * kExpanders + thread) / kPieces, first = thread % kPieces;
    } else {
      first = (2 * i + thread / kPageTokens + (kBits == 4 ? slot / 2 : slot)) % kPieces;
    }
    const uint4 piece = load_shared(codes + static_cast<uint32_t>(slot * (kDim * kBits / 8) + first * 16));
    const float scale = load_scale(scales + static_cast<uint32_t>(slot * 2));
    const ScalePair scaled = ScalePair::of(scale, scale);
    const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
    const int place = first * kOf;
    const uint32_t at = to + static_cast<uint32_t>(slot * 128 + place / 8 * kBoxBytes + ((place ^ slot) & 7) * 16);
#pragma unroll
    for (int w = 0; w < kOf; ++w) {
      uint32_t pairs[4];
      if constexpr (kBits == 4) {
        levels_of<4>(tables, words[w], pairs);
      } else {
        uint32_t two[2][2];
        levels_of<8>(tables, words[2 * w], two[0]);
        levels_of<8>(tables, words[2 * w + 1], two[1]);
        pairs[0] = two[0][0], pairs[1] = two[0][1], pairs[2] = two[1][0], pairs[3] = two[1][1];
      }
#pragma unroll
      for (uint32_t& pair : pairs) pair = scaled.times(pair);
      store_shared(at ^ static_cast<uint32_t>(w * 16), pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

/// A page's values: of two quads of tokens, the same coordinates, so that eight tokens of each become 16 bytes.
template <int kDim, int kBits>
__device__ __forceinline__ void expand_values(const ExpandTables& tables, uint32_t codes, uint32_t scales,
                                              uint32_t to) {
  constexpr int kPairs = kPageTokens / tq::kQuad / 2, kPieces = kDim * kBits / 32, kOf = 8 / kBits;
  const int thread = static_cast<int>(threadIdx.x) % kExpanders, pair = thread % kPairs;
  ScalePair scaled[4];
  const uint4 stored = load_shared(scales + static_cast<uint32_t>(pair * 16));
  const uint32_t of_tokens[4] = {stored.x, stored.y, stored.z, stored.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scaled[i] = ScalePair::of(worth_of(static_cast<uint16_t>(of_tokens[i])),
                              worth_of(static_cast<uint16_t>(of_tokens[i] >> 16)));
  }
#pragma unroll 1
  for (int i = thread / kPairs; i < kPieces; i += kExpanders / kPairs) {
    const int piece = (pair + i) % kPieces, row = piece * 4 * kOf;
    const uint32_t from = codes + static_cast<uint32_t>((2 * pair * kPieces + piece) * 16);
    const uint4 a = load_shared(from), b = load_shared(from + kPieces * 16);
    const uint32_t words[4][2] = {{a.x, b.x}, {a.y, b.y}, {a.z, b.z}, {a.w, b.w}};
    const uint32_t at = to + static_cast<uint32_t>(row * 128 + ((pair ^ row) & 7) * 16);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t pairs[2][2 * kOf];
      levels_of<kBits>(tables, words[w][0], pairs[0]);
      levels_of<kBits>(tables, words[w][1], pairs[1]);
#pragma unroll
      for (int r = 0; r < kOf; ++r) {
        uint32_t x[4] = {pairs[0][2 * r], pairs[0][2 * r + 1], pairs[1][2 * r], pairs[1][2 * r + 1]};
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = scaled[j].times(x[j]);
        const uint32_t further = static_cast<uint32_t>(w * kOf + r);  // fewer than 8 coordinates: no carry into these
        store_shared((at ^ further * 16) + further * 128, x[0], x[1], x[2], x[3]);
      }
    }
  }
}

}  // namespace firstlight::cuda
