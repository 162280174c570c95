// SPDX-License-Identifier: Apache-2.0
// TurboQuant's arithmetic on four vectors by one warp, eight lanes each: coordinate 32 j + 4 s + e lies in register
// 4 j + e of lane 8 v + s. Fewer exchanges between lanes than one vector a warp takes (12 a round instead of 20). Sums
// are those of quant/turboquant_encode.h in their order, each rounded by itself: the same codes and scales to the bit.
#pragma once
#include "firstlight/ops/codes_warp_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kVectors = 4, kLanesEach = 32 / kVectors;

/// A lane's place: its vector, and among the vector's lanes.
__device__ __forceinline__ int own_vector() { return static_cast<int>(threadIdx.x) % 32 / kLanesEach; }
__device__ __forceinline__ int own_lane() { return static_cast<int>(threadIdx.x) % kLanesEach; }
/// The coordinate that register i holds.
__device__ __forceinline__ int coordinate_of(int i) { return i / 4 * 32 + own_lane() * 4 + i % 4; }

/// The signs of the lane's coordinates: bit round * kDim / 8 + i.
template <int kDim>
__device__ __forceinline__ uint32_t signs_of_four(const tq::Signs& signs) {
  uint32_t flips = 0;
#pragma unroll
  for (int round = 0; round < tq::rounds(kDim); ++round) {
#pragma unroll
    for (int word = 0; word < kDim / 64; ++word) {
      const uint64_t bits =
          __ldg(reinterpret_cast<const unsigned long long*>(&signs.bits[round][word])) >> own_lane() * 4;
      const uint32_t both = (static_cast<uint32_t>(bits) & 15u) | (static_cast<uint32_t>(bits >> 32) & 15u) << 4;
      flips |= both << (round * (kDim / 8) + word * 8);
    }
  }
  return flips;
}

/// Π x; `flips`: signs_of_four().
template <int kDim>
__device__ __forceinline__ void rotate_four(uint32_t flips, float (&x)[kDim / 8]) {
  const auto pairs = [&](int distance) {
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      if (i & distance) continue;
      const float a = x[i], b = x[i + distance];
      x[i] = __fadd_rn(a, b);
      x[i + distance] = __fsub_rn(a, b);
    }
  };
#pragma unroll 1  // short code: its instructions are fetched anew at every launch
  for (int round = 0; round < tq::rounds(kDim); ++round) {
    const uint32_t own = flips >> (round * (kDim / 8));
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) x[i] = __uint_as_float(__float_as_uint(x[i]) ^ (own << (31 - i) & 0x80000000u));
    if constexpr (kDim == 128) pairs(8);
    pairs(4);
#pragma unroll
    for (unsigned h = kLanesEach / 2; h >= 1; h /= 2) {
      const float sign = threadIdx.x & h ? -1.0f : 1.0f;
#pragma unroll
      for (float& each : x) each = __fmaf_rn(sign, each, __shfl_xor_sync(kWholeWarp, each, static_cast<int>(h)));
    }
    pairs(2);
    pairs(1);
  }
#pragma unroll
  for (float& each : x) each = __fmul_rn(each, tq::rotation_scale(kDim));
}

/// The vector's sum of what its lanes have of four coordinates, 32 apart already added; in every lane.
__device__ __forceinline__ float sum_of_lanes(float (&x)[4]) {
#pragma unroll
  for (int h = kLanesEach / 2; h >= 1; h /= 2) {
#pragma unroll
    for (float& each : x) each = __fadd_rn(each, __shfl_xor_sync(kWholeWarp, each, h));
  }
  return __fadd_rn(__fadd_rn(x[0], x[2]), __fadd_rn(x[1], x[3]));
}

/// turboquant::butterfly_sum of each vector, in all its lanes. Destroys x.
template <int kDim>
__device__ __forceinline__ float butterfly_sum_of_four(float (&x)[kDim / 8]) {
  if constexpr (kDim == 128) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = __fadd_rn(x[i], x[i + 8]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = __fadd_rn(x[i], x[i + 4]);
  float few[4] = {x[0], x[1], x[2], x[3]};
  return sum_of_lanes(few);
}

/// turboquant::encode_rotated of each vector: codes of the lane's coordinates, and the scale in all its lanes; false
/// for a vector that is not finite. All lanes take part, whatever their vectors hold.
template <int kDim, int kBits>
__device__ __forceinline__ bool encode_four(const float (&y)[kDim / 8], uint32_t (&codes)[kDim / 8], uint16_t& scale) {
  float terms[kDim / 8], largest = 0;
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) {
    terms[i] = __fmul_rn(y[i], y[i]);
    if (kBits == 8) largest = fmaxf(largest, fabsf(y[i]));
  }
  const float norm2 = butterfly_sum_of_four<kDim>(terms);
  if (kBits == 8) {
#pragma unroll
    for (int h = kLanesEach / 2; h >= 1; h /= 2) largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, h));
  }
  const bool finite = norm2 <= 3.40282347e38f, usable = finite && !(norm2 < tq::kZeroNorm2);
  const float inverse = kBits == 8 ? __fdiv_rn(127, largest)
                                   : __fdiv_rn(tq::Codebook < kBits == 8 ? 4 : kBits > ::unit(kDim), tq::root(norm2));
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) {
    const tq::Coded coded = tq::encode_coordinate<kBits>(y[i], inverse);
    codes[i] = usable ? coded.code : 0;
    terms[i] = coded.term;
  }
  const float product = butterfly_sum_of_four<kDim>(terms);
  scale = usable ? tq::stored_scale(__fdiv_rn(norm2, product)) : uint16_t{0};
  return finite;
}

}  // namespace firstlight::cuda
