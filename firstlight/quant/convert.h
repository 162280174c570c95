// SPDX-License-Identifier: Apache-2.0
// Plain floating-point element types into f32 and bf16.
#pragma once
#include <cstddef>
#include <cstdint>

#include "firstlight/base/dtype.h"

namespace firstlight {

/// f8_e4m3 is the variant without infinities (OCP's E4M3, torch.float8_e4m3fn): largest value 448. Exact.
float f8_e4m3_to_f32(uint8_t x) noexcept;
float f8_e5m2_to_f32(uint8_t x) noexcept;

/// n elements of `from` as `to`. The same type is copied; else `to` is f32 or bf16 and `from` is f64, f32, f16, bf16 or
/// an f8. Widening is exact, narrowing rounds to nearest, ties to even (f64 → bf16 by way of f32, as torch does); NaN
/// stays NaN. Throws Error{unsupported} for other pairs. No alignment is needed; in and out must not overlap.
void convert(DType from, const std::byte* in, int64_t n, DType to, std::byte* out);

}  // namespace firstlight
