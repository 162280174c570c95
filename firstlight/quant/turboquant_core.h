// SPDX-License-Identifier: Apache-2.0
// TurboQuant's arithmetic, one text for the CPU and the GPU. Results are the same bits everywhere if products and sums
// are not fused (-ffp-contract=off, --fmad=false): each sum has its order, and the rest rounds correctly by IEEE 754.
// No C++ headers, internal linkage: the linker must not hand a copy compiled for AVX-512 to an older core.
#pragma once
#include <stdint.h>

#include "firstlight/base/host_device.h"

#define FIRSTLIGHT_TQ static FIRSTLIGHT_HD inline

namespace firstlight::turboquant {

/// Signs of the rotation's rounds: bit i % 64 of word i / 64 set = coordinate i changes its sign.
struct Signs {
  uint64_t bits[3][4];
};

/// Rounds of signs and Hadamard transform. Three at 64: two leave a pair of spikes 35 % worse than three do.
FIRSTLIGHT_TQ constexpr int rounds(int dim) { return dim == 64 ? 3 : 2; }
/// What makes the rounds' product orthonormal: a power of two for 64, 128 and 256, so it costs no accuracy.
FIRSTLIGHT_TQ constexpr float rotation_scale(int dim) {
  return dim == 64 ? 1.0f / 512 : 1.0f / static_cast<float>(dim);
}

/// Codebook I: levels are integers, within .3 % of Lloyd-Max's distortion. |z| below every threshold is level kFirst,
/// each threshold that it exceeds adds its gain.
template <int kBits>
struct Codebook;
template <>
struct Codebook<4> {
  static constexpr int kFirst = 3, kThresholds = 7;
  FIRSTLIGHT_TQ constexpr float threshold(int k) {
    constexpr float kAt[] = {6, 12, 18, 24.5f, 32, 41, 53};
    return kAt[k];
  }
  FIRSTLIGHT_TQ constexpr int gain(int k) {
    constexpr int kGain[] = {6, 6, 6, 7, 8, 10, 14};
    return kGain[k];
  }
  /// √d / step: what turns a coordinate of a unit vector into z.
  FIRSTLIGHT_TQ constexpr float unit(int d) {
    return static_cast<float>(d == 64 ? 8 / .044055 : d == 128 ? 11.313708498984761 / .044635 : 16 / .044902);
  }
};
template <>
struct Codebook<3> {
  static constexpr int kFirst = 7, kThresholds = 3;
  FIRSTLIGHT_TQ constexpr float threshold(int k) {
    constexpr float kAt[] = {14.5f, 30.5f, 50.5f};
    return kAt[k];
  }
  FIRSTLIGHT_TQ constexpr int gain(int k) {
    constexpr int kGain[] = {15, 17, 23};
    return kGain[k];
  }
  FIRSTLIGHT_TQ constexpr float unit(int d) {
    return static_cast<float>(d == 64 ? 8 / .034069 : d == 128 ? 11.313708498984761 / .034344 : 16 / .034482);
  }
};
template <>
struct Codebook<2> {
  static constexpr int kFirst = 6, kThresholds = 1;
  FIRSTLIGHT_TQ constexpr float threshold(int) { return 13; }
  FIRSTLIGHT_TQ constexpr int gain(int) { return 14; }
  FIRSTLIGHT_TQ constexpr float unit(int d) {
    return static_cast<float>(d == 64 ? 8 / .075034 : d == 128 ? 11.313708498984761 / .075260 : 16 / .075410);
  }
};

/// The integer that a code stands for. Codes of 2 to 4 bits: magnitude, and the sign in the top bit; of 8 bits: two's
/// complement, −127 to 127, uniform, and the step is the vector's own (its largest coordinate / 127).
template <int kBits>
FIRSTLIGHT_TQ constexpr int level(uint32_t code) {
  if constexpr (kBits == 8) {
    return static_cast<int8_t>(code);
  } else {
    const int magnitude = static_cast<int>(code & ((1u << (kBits - 1)) - 1));
    int value = Codebook<kBits>::kFirst;
    for (int k = 0; k < magnitude; ++k) value += Codebook<kBits>::gain(k);
    return code >> (kBits - 1) & 1u ? -value : value;
  }
}

FIRSTLIGHT_TQ uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}
FIRSTLIGHT_TQ float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}
FIRSTLIGHT_TQ float root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

/// The integer nearest to x * scale, ties to even, for one below 2^22 in size. The product rounds by itself.
FIRSTLIGHT_TQ float nearest(float x, float scale) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fadd_rn(__fmul_rn(x, scale), 12582912.0f), -12582912.0f);
#else
  return (x * scale + 12582912.0f) - 12582912.0f;
#endif
}

/// Scales are stored as fp16 of 64 times their value: levels are integers, so a scale is ≈ .004 of the norm, and norms
/// from 5e-4 to 9e4 stay normal numbers. Larger ones are held at 65504 / 64, smaller ones end in 0. x ≥ 0, finite.
FIRSTLIGHT_TQ uint16_t stored_scale(float x) {
  const float wide = x * 64;
  if (wide >= 65504.0f) return 0x7bff;
  if (wide < 0x1p-14f) return static_cast<uint16_t>(bits_of(wide + 0.5f) - 0x3f000000u);  // an ulp of 0.5 is 2^-24
  const uint32_t bits = bits_of(wide);
  return static_cast<uint16_t>((bits + 0xfffu + (bits >> 13 & 1u)) >> 13) - (112u << 10);
}
FIRSTLIGHT_TQ float scale_of(uint16_t stored) {
  if (stored < 0x400) return static_cast<float>(stored) * 0x1p-30f;
  return float_of((static_cast<uint32_t>(stored) << 13) + (112u << 23)) * 0x1p-6f;
}

FIRSTLIGHT_TQ float signed_by(float x, const uint64_t* bits, int i) {
  return float_of(bits_of(x) ^ static_cast<uint32_t>(bits[i / 64] >> (i % 64) & 1u) << 31);
}

/// Hadamard's transform, not scaled: stages of sums and differences of pairs, from distance d / 2 down to 1.
template <int kDim>
FIRSTLIGHT_TQ void hadamard(float* x) {
  for (int h = kDim / 2; h >= 1; h /= 2) {
    for (int block = 0; block < kDim; block += 2 * h) {
      for (int i = block; i < block + h; ++i) {
        const float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
    }
  }
}

}  // namespace firstlight::turboquant
