// SPDX-License-Identifier: Apache-2.0
// GGML's element and block types as GGUF files hold them: sizes of all, values of those that are decoded.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace firstlight {

/// GGUF's numbers of the types that are decoded.
enum class GgmlType : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30,
};

struct GgmlTypeInfo {
  uint32_t id = 0;
  std::string_view name;        ///< "Q4_1", "IQ2_XXS", …
  uint32_t block_elements = 1;  ///< 1: a plain type
  uint32_t block_bytes = 0;
  bool decodable = false;  ///< decode() knows it
};

/// Null for numbers that GGUF does not use (or no longer does: 4, 5, 31–33, 36–38).
const GgmlTypeInfo* find_ggml_type(uint32_t id) noexcept;

/// Values of n elements, a multiple of type.block_elements, bit for bit as the Python package `gguf` gives them (NaN as
/// some NaN). Throws Error{unsupported} for a type that is not decodable.
void decode_ggml(const GgmlTypeInfo& type, const std::byte* blocks, int64_t n, float* out);

/// The same, rounded to bf16 (nearest, ties to even).
void decode_ggml_to_bf16(const GgmlTypeInfo& type, const std::byte* blocks, int64_t n, uint16_t* out);

}  // namespace firstlight
