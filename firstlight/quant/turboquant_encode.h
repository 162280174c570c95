// SPDX-License-Identifier: Apache-2.0
// One rotated vector → codes and scale: TurboQuant's codebook with the scale that leaves inner products unbiased
// (EDEN's: S = ‖y‖² / ⟨c, y⟩ where the paper stores ‖y‖), host and device.
#pragma once
#include "firstlight/quant/turboquant_core.h"

namespace firstlight::turboquant {

/// Σ x in butterfly order: the halves are added, then their halves. Destroys x.
template <int kDim>
FIRSTLIGHT_TQ float butterfly_sum(float* x) {
  for (int h = kDim / 2; h >= 1; h /= 2) {
    for (int i = 0; i < h; ++i) x[i] = x[i] + x[i + h];
  }
  return x[0];
}

/// Of a rotated coordinate: its code, and what it adds to ⟨c, y⟩. `inverse`: 127 / the largest coordinate for 8 bits,
/// else Codebook::unit / ‖y‖.
struct Coded {
  uint8_t code;
  float term;
};
template <int kBits>
FIRSTLIGHT_TQ Coded encode_coordinate(float y, float inverse) {
  if constexpr (kBits == 8) {
    const float z = nearest(y, inverse);
    return {static_cast<uint8_t>(static_cast<int32_t>(z)), y * z};
  } else {
    using Book = Codebook<kBits>;
    const float size = y < 0 ? -y : y, z = size * inverse;
    int32_t code = y < 0 ? 1 << (kBits - 1) : 0, value = Book::kFirst;
    for (int k = 0; k < Book::kThresholds; ++k) {
      code += z > Book::threshold(k) ? 1 : 0;
      value += z > Book::threshold(k) ? Book::gain(k) : 0;
    }
    return {static_cast<uint8_t>(code), size * static_cast<float>(value)};
  }
}

/// Below this square of a norm a vector is zero: its scale would be 0 in fp16.
inline constexpr float kZeroNorm2 = 0x1p-60f;

/// y [kDim] → codes [kDim], one a byte, and the stored scale; y ≈ scale_of(*scale) * level(codes). False, and a zero
/// vector, if y is not finite or its norm's square overflows; a zero vector (also one of a norm below 1e-9) has scale 0
/// and codes 0.
template <int kDim, int kBits>
FIRSTLIGHT_TQ bool encode_rotated(const float* y, uint8_t* codes, uint16_t* scale) {
  float terms[kDim];
  for (int i = 0; i < kDim; ++i) terms[i] = y[i] * y[i];
  const float norm2 = butterfly_sum<kDim>(terms);
  const bool finite = norm2 <= 3.40282347e38f;  // not so for a NaN
  if (!finite || norm2 < kZeroNorm2) {
    for (int i = 0; i < kDim; ++i) codes[i] = 0;
    *scale = 0;
    return finite;
  }
  if constexpr (kBits == 8) {
    float largest = 0;
    for (int i = 0; i < kDim; ++i) {
      const float size = y[i] < 0 ? -y[i] : y[i];
      largest = size > largest ? size : largest;
    }
    const float inverse = 127 / largest;
    for (int i = 0; i < kDim; ++i) {
      const Coded coded = encode_coordinate<kBits>(y[i], inverse);
      codes[i] = coded.code;
      terms[i] = coded.term;
    }
  } else {
    const float inverse = Codebook<kBits>::unit(kDim) / root(norm2);
    for (int i = 0; i < kDim; ++i) {
      const Coded coded = encode_coordinate<kBits>(y[i], inverse);
      codes[i] = coded.code;
      terms[i] = coded.term;
    }
  }
  *scale = stored_scale(norm2 / butterfly_sum<kDim>(terms));
  return true;
}

/// A rotated query [kDim] as integers of 15 bits, |q| ≤ 127 * 128: y ≈ the result * q. Zero, or not finite: all 0.
template <int kDim>
FIRSTLIGHT_TQ float fix_query(const float* y, int16_t* q) {
  float largest = 0;
  for (int i = 0; i < kDim; ++i) {
    const float size = y[i] < 0 ? -y[i] : y[i];
    largest = size > largest ? size : largest;
  }
  const float inverse = 16256 / largest;
  const bool usable = inverse <= 3.40282347e38f && largest <= 3.40282347e38f;
  for (int i = 0; i < kDim; ++i) {
    const float z = usable ? nearest(y[i], inverse) : 0.0f;
    q[i] = static_cast<int16_t>(static_cast<int32_t>(z));
  }
  return usable ? largest / 16256 : 0.0f;
}

}  // namespace firstlight::turboquant
