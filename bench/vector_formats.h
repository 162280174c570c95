// SPDX-License-Identifier: Apache-2.0
// Ways of writing one key or value in a few bits, as pairs of "round" and "read back": TurboQuant with each of its
// parts left out, and what other engines do. Values only; nothing is packed.
#pragma once
#include <string>
#include <vector>

#include "firstlight/quant/turboquant.h"

namespace firstlight {

/// How a vector's coordinates are rounded.
enum class Rounding {
  unbiased,  ///< Lloyd-Max codebook, scale S = ‖y‖² / ⟨c, y⟩ (EDEN, arXiv 2604.18555): what the product does
  norm,      ///< the same codebook, scale ‖y‖ (TurboQuant, arXiv 2504.19874, algorithm 1)
  prod,      ///< a codebook of one bit less, and signs of a Gaussian projection of the rest (QJL; algorithm 2)
  blocks,    ///< blocks of 32 with an f16 scale: 8 bits as llama.cpp's q8_0, 4 bits as its q4_0
  e4m3,      ///< FP8 without a scale
  nvfp4      ///< E2M1 in blocks of 16 with an E4M3 scale, the second scale 1
};
enum class Turning {
  none,
  hadamard,       ///< one unsigned Hadamard transform
  signed_rounds,  ///< the product's: two rounds of signs and transform, three at head_dim 64
};

struct VectorFormat {
  Rounding rounding = Rounding::unbiased;
  int bits = 4;  ///< 2 to 5 of a codebook, 4 or 8 in blocks; e4m3 and nvfp4 have their own
  Turning turning = Turning::signed_rounds;
};

class VectorCodec {
 public:
  /// head_dim 64, 128 or 256.
  VectorCodec(const VectorFormat& format, int head_dim);
  /// x [head_dim] becomes what reading it back would give. From any thread.
  void round(const turboquant::Signs& signs, float* x) const;
  /// Bytes that the vector would take.
  double bytes() const;
  /// E‖x − round(x)‖² / E‖x‖² over 32,768 vectors of Gaussian coordinates.
  double distortion() const;

 private:
  void round_turned(float* y) const;
  void round_to_levels(const float* y, float* c) const;
  void round_prod(float* y) const;

  const VectorFormat format_;
  const int dim_;
  std::vector<float> levels_, borders_;  // of a codebook, the positive half, for coordinates of variance 1
  std::vector<float> projection_;        // prod: [head_dim][head_dim]
};

}  // namespace firstlight
