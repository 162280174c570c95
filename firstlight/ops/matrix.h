// SPDX-License-Identifier: Apache-2.0
// What the arithmetic works on: views of memory of one device.
#pragma once
#include <cstdint>

#include "firstlight/base/dtype.h"

namespace firstlight {

/// A row-major matrix on the device of the Ops; owns nothing.
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  ///< elements from row to row, ≥ cols
  T* row(int64_t i) const { return data + i * stride; }
};

/// Weights as loaded: [rows, cols] contiguous, bf16 or f32.
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::bf16;
  int64_t rows = 0, cols = 0;
};

}  // namespace firstlight
