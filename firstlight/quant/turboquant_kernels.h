// SPDX-License-Identifier: Apache-2.0
// The codec compiled for one instruction set: private to quant/turboquant*.cc. No C++ headers, as in
// turboquant_core.h.
#pragma once
#include "firstlight/quant/turboquant_core.h"

namespace firstlight::turboquant {

/// All variants give the same bits. dim is 64, 128 or 256 and bits 2, 3, 4 or 8: the caller has checked.
struct Codec {
  const char* name;  ///< "avx512", "avx2", "plain"
  /// out = Π x, the signed Hadamard rotation of x [dim]; Π is orthonormal. x and out may be the same.
  void (*rotate)(int dim, const Signs& signs, const float* x, float* out);
  /// out = Πᵀ x.
  void (*unrotate)(int dim, const Signs& signs, const float* x, float* out);
  /// Rotates x [dim] and encodes it: codes [dim], one a byte, and the scale as stored. False, with all of them zero, if
  /// a value is not finite (or the norm is beyond 1e19): nothing not a number is ever stored.
  bool (*encode)(int dim, int bits, const Signs& signs, const float* x, uint8_t* codes, uint16_t* scale);
  /// Rotates a query [dim] and rounds it to integers, |q| ≤ 16256: Π x ≈ the result * q.
  float (*fix_query)(int dim, const Signs& signs, const float* x, int16_t* q);
};

extern const Codec kCodecPlain;
#if defined(__x86_64__)
extern const Codec kCodecAvx2;    // call only where the core has AVX2
extern const Codec kCodecAvx512;  // call only where the core has AVX-512 F, BW, DQ and VL
#endif

}  // namespace firstlight::turboquant
