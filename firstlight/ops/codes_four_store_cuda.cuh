// SPDX-License-Identifier: Apache-2.0
// Codes into a page, four vectors by one warp: its registers as codes_four_cuda.cuh has them, the page as
// quant/turboquant_page.h.
#pragma once
#include "firstlight/ops/codes_four_cuda.cuh"

namespace firstlight::cuda {

/// A key's codes to `key`, its first byte.
template <int kDim, int kBits>
__device__ __forceinline__ void store_keys(const uint32_t (&codes)[kDim / 8], uint8_t* key) {
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const uint32_t* c = codes + 4 * j;
    uint8_t* const to = key + coordinate_of(4 * j) * kBits / 8;
    if constexpr (kBits == 8) {
      *reinterpret_cast<uint32_t*>(to) = c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24;
    } else {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(c[0] | c[1] << 4 | c[2] << 8 | c[3] << 12);
    }
  }
}

/// Values of a quad's tokens `present` (a bit each), which the vectors are in their order, to `quad`; those of the
/// other tokens stay.
template <int kDim, int kBits>
__device__ __forceinline__ void store_quad(const uint32_t (&codes)[kDim / 8], unsigned present, uint8_t* quad) {
  constexpr int kOfFour = kBits / 2, kWords = kDim / 32 * kOfFour, kOwn = kWords / kVectors;
  const int vector = own_vector();
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const uint32_t word = kBits == 8 ? codes[i] : codes[2 * i % (kDim / 8)] | codes[(2 * i + 1) % (kDim / 8)] << 16;
    words[i] = present >> vector & 1u ? word << vector * kBits : 0;
  }
#pragma unroll
  for (int step = 0; step < 2; ++step) {  // each lane keeps half and hands on half
    const int n = kWords / 2 >> step, h = 16 >> step;
    const bool upper = threadIdx.x & static_cast<unsigned>(h);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const uint32_t kept = upper ? words[i + n] : words[i], given = upper ? words[i] : words[i + n];
      words[i] = kept | __shfl_xor_sync(kWholeWarp, given, h);
    }
  }
  const int first = vector * kOwn;
  auto* const to =
      reinterpret_cast<uint32_t*>(quad) + first / kOfFour * 8 * kOfFour + own_lane() * kOfFour + first % kOfFour;
  if (present != 15) {
    uint32_t mask = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) mask |= present >> v & 1u ? ((1u << kBits) - 1) << v * kBits : 0;
    if (kBits == 4) mask |= mask << 16;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) words[i] |= to[i] & ~mask;
  }
  if constexpr (kOwn == 4) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else if constexpr (kOwn == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
    *to = words[0];
  }
}

}  // namespace firstlight::cuda
