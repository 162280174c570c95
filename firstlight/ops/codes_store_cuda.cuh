// SPDX-License-Identifier: Apache-2.0
// Codes into a page, by one warp: its registers as codes_warp_cuda.cuh has them, the page as quant/turboquant_page.h.
#pragma once
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::cuda {

/// A key's codes to `key`, its first byte. Lanes that share a byte hand their bits to the first of them.
template <int kDim, int kBits>
__device__ __forceinline__ void store_key(const uint32_t (&codes)[kDim / 32], uint8_t* key) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    if constexpr (kBits == 8) {
      key[32 * j + lane] = static_cast<uint8_t>(codes[j]);
    } else if constexpr (kBits == 4) {
      const uint32_t byte = codes[j] | __shfl_down_sync(kWholeWarp, codes[j], 1) << 4;
      if (lane % 2 == 0) key[(32 * j + lane) / 2] = static_cast<uint8_t>(byte);
    } else {
      uint32_t byte = (codes[j] & 3u) << (lane % 4 * 2);
      byte |= __shfl_xor_sync(kWholeWarp, byte, 1);
      byte |= __shfl_xor_sync(kWholeWarp, byte, 2);
      if (lane % 4 == 0) key[(32 * j + lane) / 4] = static_cast<uint8_t>(byte);
      if constexpr (kBits == 3) {
        const uint32_t signs = __ballot_sync(kWholeWarp, codes[j] >> 2 != 0);
        if (lane % 8 == 0) key[kDim / 4 + (32 * j + lane) / 8] = static_cast<uint8_t>(signs >> lane);
      }
    }
  }
}

/// The values of four tokens, as they are in the page; tokens that do not come now stay.
template <int kDim, int kBits>
struct Quad {
  static constexpr int kPer = kDim / 32;
  uint32_t words[kPer], signs[kPer];  ///< signs: of 3 bits alone

  __device__ __forceinline__ void load(const uint8_t* quad) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = 32 * j + lane;
      if constexpr (kBits == 8) {
        words[j] = reinterpret_cast<const uint32_t*>(quad)[i];
      } else if constexpr (kBits == 4) {
        words[j] = reinterpret_cast<const uint16_t*>(quad)[i];
      } else {
        words[j] = quad[i];
        if constexpr (kBits == 3) signs[j] = static_cast<uint32_t>(quad[kDim + i / 2]) >> (i % 2 * 4) & 15u;
      }
    }
  }
  __device__ __forceinline__ void put(int token, const uint32_t (&codes)[kPer]) {
    constexpr uint32_t kWidth = kBits == 3 ? 2 : kBits, kMask = (1u << kWidth) - 1;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const uint32_t at = static_cast<uint32_t>(token) * kWidth;
      words[j] = (words[j] & ~(kMask << at)) | (codes[j] & kMask) << at;
      if constexpr (kBits == 3) signs[j] = (signs[j] & ~(1u << token)) | codes[j] >> 2 << token;
    }
  }
  __device__ __forceinline__ void store(uint8_t* quad) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = 32 * j + lane;
      if constexpr (kBits == 8) {
        reinterpret_cast<uint32_t*>(quad)[i] = words[j];
      } else if constexpr (kBits == 4) {
        reinterpret_cast<uint16_t*>(quad)[i] = static_cast<uint16_t>(words[j]);
      } else {
        quad[i] = static_cast<uint8_t>(words[j]);
        if constexpr (kBits == 3) {
          const uint32_t byte = signs[j] | __shfl_down_sync(kWholeWarp, signs[j], 1) << 4;
          if (lane % 2 == 0) quad[kDim + i / 2] = static_cast<uint8_t>(byte);
        }
      }
    }
  }
};

/// Codes of y, a rotated key, to `slot` of a head's page; false if it is not finite.
template <int kDim, int kBits>
__device__ __forceinline__ bool encode_key(const tq::PageShape& shape, const float (&y)[kDim / 32], int slot,
                                           uint8_t* page) {
  uint32_t codes[kDim / 32];
  uint16_t scale;
  const bool finite = encode_rotated<kDim, kBits>(y, codes, scale);
  store_key<kDim, kBits>(codes, page + slot * shape.key_bytes());
  if (threadIdx.x % 32 == 0) reinterpret_cast<uint16_t*>(page + shape.key_scales_at())[slot] = scale;
  return finite;
}

/// The same of a value, whose codes go to the quad that `slot` belongs to.
template <int kDim, int kBits>
__device__ __forceinline__ bool encode_value(const tq::PageShape& shape, const float (&y)[kDim / 32], int slot,
                                             Quad<kDim, kBits>& quad, uint8_t* page) {
  uint32_t codes[kDim / 32];
  uint16_t scale;
  const bool finite = encode_rotated<kDim, kBits>(y, codes, scale);
  quad.put(slot % tq::kQuad, codes);
  if (threadIdx.x % 32 == 0) reinterpret_cast<uint16_t*>(page + shape.value_scales_at())[slot] = scale;
  return finite;
}
__device__ __forceinline__ uint8_t* quad_of(const tq::PageShape& shape, int slot, uint8_t* page) {
  return page + shape.values_at() + slot / tq::kQuad * shape.quad_bytes();
}

/// A key or value that is not finite; the host looks when the pass ends.
__device__ __forceinline__ void report(CodeFault fault, unsigned long long* first, uint32_t* seen) {
  if (threadIdx.x % 32 != 0) return;
  atomicMin(first, fault.packed());
  *static_cast<volatile uint32_t*>(seen) = 1;
}

}  // namespace firstlight::cuda
