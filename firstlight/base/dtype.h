// SPDX-License-Identifier: Apache-2.0
// Element types of plain (unquantised) tensors, named as safetensors names them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace firstlight {

enum class DType : uint8_t { f64, f32, f16, bf16, f8_e4m3, f8_e5m2, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

/// Bytes of one element.
size_t size_of(DType dtype) noexcept;
/// safetensors' name: "F32", "BF16", "F8_E4M3", "BOOL", …
std::string_view safetensors_name(DType dtype) noexcept;
/// Null for a name that safetensors knows but we do not (F4, F8_E8M0, …) and for nonsense.
std::optional<DType> dtype_from_safetensors(std::string_view name) noexcept;
/// Our own short name: "f32", "bf16", …
std::string_view to_string(DType dtype) noexcept;

}  // namespace firstlight
