// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/dtype.h"

#include <array>

namespace firstlight {

namespace {

struct Row {
  std::string_view safetensors, ours;
  uint8_t bytes;
};

constexpr std::array<Row, 15> kRows{{{"F64", "f64", 8},
                                     {"F32", "f32", 4},
                                     {"F16", "f16", 2},
                                     {"BF16", "bf16", 2},
                                     {"F8_E4M3", "f8_e4m3", 1},
                                     {"F8_E5M2", "f8_e5m2", 1},
                                     {"I64", "i64", 8},
                                     {"I32", "i32", 4},
                                     {"I16", "i16", 2},
                                     {"I8", "i8", 1},
                                     {"U64", "u64", 8},
                                     {"U32", "u32", 4},
                                     {"U16", "u16", 2},
                                     {"U8", "u8", 1},
                                     {"BOOL", "bool", 1}}};

}  // namespace

size_t size_of(DType dtype) noexcept { return kRows[static_cast<size_t>(dtype)].bytes; }
std::string_view safetensors_name(DType dtype) noexcept { return kRows[static_cast<size_t>(dtype)].safetensors; }
std::string_view to_string(DType dtype) noexcept { return kRows[static_cast<size_t>(dtype)].ours; }

std::optional<DType> dtype_from_safetensors(std::string_view name) noexcept {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].safetensors == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace firstlight
