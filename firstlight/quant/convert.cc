// SPDX-License-Identifier: Apache-2.0
// Loads and stores go through memcpy: tensors of a file lie at any byte. GCC 12 turns the loops into vector code at
// -O3.
#include "firstlight/quant/convert.h"

#include <array>
#include <bit>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

template <class T>
T load(const std::byte* in, int64_t i) {
  T x;
  std::memcpy(&x, in + i * static_cast<int64_t>(sizeof x), sizeof x);
  return x;
}

/// f16 → f32 without branches, so that loops vectorise: shifted into place the bits are the value times 2⁻¹¹², also for
/// subnormals.
float f16_branchless(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u | magnitude : scaled;
  return std::bit_cast<float>(special | static_cast<uint32_t>(h & 0x8000u) << 16);
}

const std::array<float, 256>& f8_table(DType dtype) {
  static const auto make = [](float (*value)(uint8_t)) {
    std::array<float, 256> table;
    for (size_t i = 0; i < table.size(); ++i) table[i] = value(static_cast<uint8_t>(i));
    return table;
  };
  static const std::array<float, 256> e4m3 = make([](uint8_t x) { return f8_e4m3_to_f32(x); });
  static const std::array<float, 256> e5m2 = make([](uint8_t x) { return f8_e5m2_to_f32(x); });
  return dtype == DType::f8_e4m3 ? e4m3 : e5m2;
}

/// Stores element i of a loop as f32 or bf16.
template <class Value>
void convert_loop(int64_t n, DType to, std::byte* out, const Value& value) {
  if (to == DType::f32) {
    for (int64_t i = 0; i < n; ++i) {
      const float x = value(i);
      std::memcpy(out + i * 4, &x, 4);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t x = f32_to_bf16(value(i));
      std::memcpy(out + i * 2, &x, 2);
    }
  }
}

}  // namespace

float f8_e4m3_to_f32(uint8_t x) noexcept {
  const uint32_t sign = static_cast<uint32_t>(x & 0x80u) << 24, magnitude = x & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  // 4 exponent bits (bias 7), 3 of mantissa; below exponent 1 in steps of 2⁻⁹.
  const float value =
      magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f : std::bit_cast<float>((magnitude << 20) + (120u << 23));
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

float f8_e5m2_to_f32(uint8_t x) noexcept {
  return f16_to_f32(static_cast<uint16_t>(x << 8));
}  // the upper half of an f16

void convert(DType from, const std::byte* in, int64_t n, DType to, std::byte* out) {
  if (from == to) {
    if (n > 0) std::memcpy(out, in, static_cast<size_t>(n) * size_of(from));
    return;
  }
  if (to == DType::f32 || to == DType::bf16) {
    switch (from) {
      case DType::f64:
        return convert_loop(n, to, out, [=](int64_t i) { return static_cast<float>(load<double>(in, i)); });
      case DType::f32:
        return convert_loop(n, to, out, [=](int64_t i) { return load<float>(in, i); });
      case DType::f16:
        return convert_loop(n, to, out, [=](int64_t i) { return f16_branchless(load<uint16_t>(in, i)); });
      case DType::bf16:
        return convert_loop(n, to, out, [=](int64_t i) { return bf16_to_f32(load<uint16_t>(in, i)); });
      case DType::f8_e4m3:
      case DType::f8_e5m2: {
        const auto& table = f8_table(from);
        return convert_loop(n, to, out, [&](int64_t i) { return table[load<uint8_t>(in, i)]; });
      }
      default:
        break;
    }
  }
  throw Error(ErrorKind::unsupported,
              str("conversion of ", safetensors_name(from), " to ", safetensors_name(to), " is not supported"));
}

}  // namespace firstlight
