// SPDX-License-Identifier: Apache-2.0
// Codes in memory become the bf16 operands of Hopper's attention, also in memory: a share of a page at a time, by a
// warp. Level times scale, rounded once. Rows lie as tensor copies leave them in shared memory, so that plain copies
// bring them there.
#pragma once
#include "firstlight/ops/attend_hopper_levels_cuda.cuh"
#include "firstlight/ops/attend_hopper_pages_cuda.cuh"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::cuda {

/// Shares, of keys or of values, that a warp expands before it says so.
inline constexpr int kSharesOfItem = 4;

/// An expanded page: [keys, values][64 numbers of each][64 tokens], swizzled by 128 bytes.
template <int kDim>
struct ExpandedPage {
  static constexpr int kSideBytes = kPageTokens * kDim * 2, kBytes = 2 * kSideBytes;
  static constexpr int kPieces = kDim / 8;  ///< of eight numbers, of a token
  /// A share: keys or values of so many tokens, 32 pieces of four tokens.
  static constexpr int kShareTokens = 128 / kPieces, kShares = 2 * kPageTokens / kShareTokens;
  static constexpr int kItems = kShares / kSharesOfItem;
  __device__ __forceinline__ static int at(int token, int piece) {
    return piece / 8 * kPageBytes + token * 128 + ((piece ^ token) & 7) * 16;
  }
};

/// What a lane has of a share's codes: keys, a piece of each of four tokens; or values, those of a quad's.
template <int kDim, int kKeyBits, int kValueBits>
struct Share {
  using Page = ExpandedPage<kDim>;
  static constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  static constexpr int kWords = kKeyBits > kValueBits ? kKeyBits : kValueBits;
  uint32_t words[kWords];
  uint16_t scale;  ///< of token lane % kShareTokens
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static bool is_of_keys(int share) { return share < Page::kShares / 2; }

  __device__ __forceinline__ void load(const uint8_t* page, int share) {
    if (is_of_keys(share)) {
      const uint8_t* from = page + (share * 128 + lane()) * kKeyBits;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kKeyBits == 4) {
          words[i] = __ldg(reinterpret_cast<const uint32_t*>(from) + i * 32);
        } else {
          const uint2 x = __ldg(reinterpret_cast<const uint2*>(from) + i * 32);
          words[2 * i] = x.x, words[2 * i + 1] = x.y;
        }
      }
    } else {
      const uint8_t* from = page + kShape.values_at() + ((share - Page::kShares / 2) * 32 + lane()) * kValueBits * 4;
#pragma unroll
      for (int i = 0; i < kValueBits / 4; ++i) {
        const uint4 x = __ldg(reinterpret_cast<const uint4*>(from) + i);
        words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
      }
    }
    // Keys' scales and values' lie behind one another.
    scale = __ldg(reinterpret_cast<const uint16_t*>(page + kShape.key_scales_at()) + share * Page::kShareTokens +
                  lane() % Page::kShareTokens);
  }

  /// To the page at `to`.
  __device__ __forceinline__ void expand_to(std::byte* to, int share, const ExpandTables& tables) const {
    const float worth = worth_of(scale);
    const ScalePair own = ScalePair::of(worth, worth);
    const bool is_keys = is_of_keys(share);
    const int piece = lane() % Page::kPieces, row = lane() / Page::kPieces * (is_keys ? 1 : tq::kQuad);
    const int first = share * Page::kShareTokens % kPageTokens;
    if (!is_keys) to += Page::kSideBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = row + i * (is_keys ? 32 / Page::kPieces : 1);
      const ScalePair scaled{__shfl_sync(kWholeWarp, own.high, token), __shfl_sync(kWholeWarp, own.low, token)};
      uint32_t x[4];
      is_keys ? levels_of_key(i, tables, x) : levels_of_token(i, tables, x);
#pragma unroll
      for (uint32_t& pair : x) pair = scaled.times(pair);
      asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to + Page::at(first + token, piece)), "r"(x[0]),
                   "r"(x[1]), "r"(x[2]), "r"(x[3])
                   : "memory");
    }
  }

 private:
  __device__ __forceinline__ void levels_of_key(int i, const ExpandTables& tables, uint32_t (&x)[4]) const {
    if constexpr (kKeyBits == 4) {
      levels_of<4>(tables, words[i], x);
    } else {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t two[2];
        levels_of<8>(tables, words[2 * i + j], two);
        x[2 * j] = two[0], x[2 * j + 1] = two[1];
      }
    }
  }
  __device__ __forceinline__ void levels_of_token(int i, const ExpandTables& tables, uint32_t (&x)[4]) const {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (kValueBits == 4) {
        const Expanded two = expand(tables, words[w]);
        x[w] = levels_across<4>(two.low, two.high, static_cast<uint32_t>(i));
      } else {
        x[w] = levels_across<8>(words[2 * w], words[2 * w + 1], static_cast<uint32_t>(i));
      }
    }
  }
};

}  // namespace firstlight::cuda
