// SPDX-License-Identifier: Apache-2.0
// TurboQuant's rotation of rows as a warpgroup's registers have them: x[4 n + 2 half + e] of lane 4 g + t is coordinate
// 8 n + 2 t + e of row g + 8 half. Sums are not in the order of the other kernels'.
#pragma once
#include "firstlight/ops/codes_warp_cuda.cuh"

namespace firstlight::cuda {

/// The lane's signs of a round.
template <int kDim>
__device__ __forceinline__ void change_own_signs(const tq::Signs& signs, int round, float (&x)[kDim / 2]) {
  const unsigned at = threadIdx.x % 4 * 2;
#pragma unroll
  for (int word = 0; word < kDim / 64; ++word) {
    const uint64_t bits = __ldg(reinterpret_cast<const unsigned long long*>(&signs.bits[round][word])) >> at;
    const uint32_t halves[2] = {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
#pragma unroll
    for (int i = 0; i < 32; ++i) {  // 4 n + 2 half + e
      const uint32_t flip = halves[i / 16] << (31 - (i % 16 / 4 * 8 + i % 2)) & 0x80000000u;
      float& each = x[word * 32 + i];
      each = __uint_as_float(__float_as_uint(each) ^ flip);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void hadamard_of_rows(float (&x)[kDim / 2]) {
  const auto pairs = [&](int distance) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) {
      if (i & distance) continue;
      const float a = x[i], b = x[i + distance];
      x[i] = a + b;
      x[i + distance] = a - b;
    }
  };
#pragma unroll
  for (int h = kDim / 4; h >= 4; h /= 2) pairs(h);
#pragma unroll
  for (int h = 2; h >= 1; h /= 2) {
    const float sign = threadIdx.x & static_cast<unsigned>(h) ? -1.0f : 1.0f;
#pragma unroll
    for (float& each : x) each = fmaf(sign, each, __shfl_xor_sync(kWholeWarp, each, h));
  }
  pairs(1);
}

/// Π x
template <int kDim>
__device__ __forceinline__ void rotate_rows(const tq::Signs& signs, float (&x)[kDim / 2]) {
#pragma unroll 1
  for (int round = 0; round < tq::rounds(kDim); ++round) {
    change_own_signs<kDim>(signs, round, x);
    hadamard_of_rows<kDim>(x);
  }
#pragma unroll
  for (float& each : x) each *= tq::rotation_scale(kDim);
}

/// Πᵀ x
template <int kDim>
__device__ __forceinline__ void unrotate_rows(const tq::Signs& signs, float (&x)[kDim / 2]) {
#pragma unroll 1
  for (int round = tq::rounds(kDim) - 1; round >= 0; --round) {
    hadamard_of_rows<kDim>(x);
    change_own_signs<kDim>(signs, round, x);
  }
#pragma unroll
  for (float& each : x) each *= tq::rotation_scale(kDim);
}

}  // namespace firstlight::cuda
