// SPDX-License-Identifier: Apache-2.0
// TurboQuant's arithmetic on one vector by one warp: coordinate 32 j + lane lies in register j of a lane. Sums are
// those of quant/turboquant_encode.h in their order, each rounded by itself: the same codes, scales and integers to the
// bit.
#pragma once
#include <cuda_runtime.h>

#include "firstlight/quant/turboquant_encode.h"

namespace firstlight::cuda {

namespace tq = firstlight::turboquant;

inline constexpr unsigned kWholeWarp = 0xffffffffu;

template <int kDim>
__device__ __forceinline__ void hadamard(float (&x)[kDim / 32]) {
#pragma unroll
  for (int h = kDim / 64; h >= 1; h /= 2) {  // distances of whole registers
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      if (j & h) continue;
      const float a = x[j], b = x[j + h];
      x[j] = __fadd_rn(a, b);
      x[j + h] = __fsub_rn(a, b);
    }
  }
#pragma unroll 1  // short code: its instructions are fetched anew at every launch, by all multiprocessors at once
  for (unsigned h = 16; h >= 1; h /= 2) {
    const uint32_t flip = (threadIdx.x & h) != 0 ? 1u << 31 : 0;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const float other = __shfl_xor_sync(kWholeWarp, x[j], static_cast<int>(h));
      x[j] = __fadd_rn(other, __uint_as_float(__float_as_uint(x[j]) ^ flip));
    }
  }
}

/// The signs of the lane's coordinates: bit round * kDim / 32 + j. Loaded past whatever is stored meanwhile: a pass
/// does not change them.
template <int kDim>
__device__ __forceinline__ uint32_t lane_signs(const tq::Signs& signs) {
  uint32_t flips = 0;
#pragma unroll
  for (int round = 0; round < tq::rounds(kDim); ++round) {
#pragma unroll
    for (int word = 0; word < kDim / 64; ++word) {
      const uint64_t bits = __ldg(reinterpret_cast<const unsigned long long*>(&signs.bits[round][word]));
      const uint32_t at = static_cast<uint32_t>(round * (kDim / 32) + 2 * word), lane = threadIdx.x % 32;
      flips |= (static_cast<uint32_t>(bits) >> lane & 1u) << at | (static_cast<uint32_t>(bits >> 32) >> lane & 1u)
                                                                      << (at + 1);
    }
  }
  return flips;
}

template <int kDim>
__device__ __forceinline__ void change_signs(uint32_t flips, int round, float (&x)[kDim / 32]) {
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const uint32_t flip = flips >> (round * (kDim / 32) + j) & 1u;
    x[j] = __uint_as_float(__float_as_uint(x[j]) ^ flip << 31);
  }
}

/// Π x; `flips`: lane_signs().
template <int kDim>
__device__ __forceinline__ void rotate(uint32_t flips, float (&x)[kDim / 32]) {
#pragma unroll 1  // short code: its instructions are fetched anew at every launch
  for (int round = 0; round < tq::rounds(kDim); ++round) {
    change_signs<kDim>(flips, round, x);
    hadamard<kDim>(x);
  }
#pragma unroll
  for (float& each : x) each = __fmul_rn(each, tq::rotation_scale(kDim));
}

/// Πᵀ x
template <int kDim>
__device__ __forceinline__ void unrotate(uint32_t flips, float (&x)[kDim / 32]) {
#pragma unroll 1
  for (int round = tq::rounds(kDim) - 1; round >= 0; --round) {
    hadamard<kDim>(x);
    change_signs<kDim>(flips, round, x);
  }
#pragma unroll
  for (float& each : x) each = __fmul_rn(each, tq::rotation_scale(kDim));
}

/// turboquant::butterfly_sum, in every lane. Destroys x.
template <int kDim>
__device__ __forceinline__ float butterfly_sum(float (&x)[kDim / 32]) {
#pragma unroll
  for (int h = kDim / 64; h >= 1; h /= 2) {
#pragma unroll
    for (int j = 0; j < h; ++j) x[j] = __fadd_rn(x[j], x[j + h]);
  }
#pragma unroll
  for (int h = 16; h >= 1; h /= 2) x[0] = __fadd_rn(x[0], __shfl_xor_sync(kWholeWarp, x[0], h));
  return x[0];
}

template <int kDim>
__device__ __forceinline__ float largest_size(const float (&x)[kDim / 32]) {
  float largest = 0;
#pragma unroll
  for (const float each : x) largest = fmaxf(largest, fabsf(each));
#pragma unroll
  for (int h = 16; h >= 1; h /= 2) largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, h));
  return largest;
}

/// turboquant::encode_rotated: codes of the lane's coordinates, and the scale in every lane; false if not finite.
template <int kDim, int kBits>
__device__ __forceinline__ bool encode_rotated(const float (&y)[kDim / 32], uint32_t (&codes)[kDim / 32],
                                               uint16_t& scale) {
  float terms[kDim / 32];
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) terms[j] = __fmul_rn(y[j], y[j]);
  const float norm2 = butterfly_sum<kDim>(terms);
  const bool finite = norm2 <= 3.40282347e38f;
  if (!finite || norm2 < tq::kZeroNorm2) {
#pragma unroll
    for (uint32_t& code : codes) code = 0;
    scale = 0;
    return finite;
  }
  const float inverse = kBits == 8 ? __fdiv_rn(127, largest_size<kDim>(y))
                                   : __fdiv_rn(tq::Codebook < kBits == 8 ? 4 : kBits > ::unit(kDim), tq::root(norm2));
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const tq::Coded coded = tq::encode_coordinate<kBits>(y[j], inverse);
    codes[j] = coded.code;
    terms[j] = coded.term;
  }
  scale = tq::stored_scale(__fdiv_rn(norm2, butterfly_sum<kDim>(terms)));
  return true;
}

/// turboquant::fix_query
template <int kDim>
__device__ __forceinline__ float fix_query(const float (&y)[kDim / 32], int (&q)[kDim / 32]) {
  const float largest = largest_size<kDim>(y), inverse = __fdiv_rn(16256, largest);
  const bool usable = inverse <= 3.40282347e38f && largest <= 3.40282347e38f;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) q[j] = usable ? static_cast<int>(tq::nearest(y[j], inverse)) : 0;
  return usable ? __fdiv_rn(largest, 16256) : 0.0f;
}

}  // namespace firstlight::cuda
