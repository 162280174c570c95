// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/synth_values.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/base/str.h"
#include "firstlight/quant/convert.h"

namespace firstlight {

namespace {

constexpr size_t kTableSize = 4096;  // 8 KiB: stays in the first-level cache

/// The quantiles (i + ½) / 4096 of N(0, 1): an element is one of them, scaled, at random.
double quantile(size_t i) {
  const double p = (static_cast<double>(i) + 0.5) / kTableSize;
  double low = -8, high = 8;
  for (int step = 0; step < 60; ++step) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return low;
}

uint8_t nearest_f8(double x) {
  uint8_t best = 0;
  for (int code = 0; code < 256; ++code) {
    const double value = f8_e4m3_to_f32(static_cast<uint8_t>(code));
    if (std::abs(value - x) < std::abs(f8_e4m3_to_f32(best) - x)) best = static_cast<uint8_t>(code);  // never a NaN
  }
  return best;
}

template <class T, class Convert>
std::array<T, kTableSize> make_table(double deviation, Convert convert) {
  std::array<T, kTableSize> out{};
  for (size_t i = 0; i < kTableSize; ++i) out[i] = convert(deviation * quantile(i));
  return out;
}

/// splitmix64's finaliser (Steele, Lea, Flood 2014): 64 good bits from a counter.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Four elements share one counter.
template <class T>
void fill_random(const std::array<T, kTableSize>& values, uint64_t stream, uint64_t begin, uint64_t n, T* out) {
  uint64_t i = begin;
  const uint64_t end = begin + n;
  for (; i < end && i % 4 != 0; ++i) *out++ = values[(mix(stream + i / 4) >> (16 * (i % 4))) & (kTableSize - 1)];
  for (; i + 4 <= end; i += 4, out += 4) {
    const uint64_t bits = mix(stream + i / 4);
    out[0] = values[bits & (kTableSize - 1)];
    out[1] = values[(bits >> 16) & (kTableSize - 1)];
    out[2] = values[(bits >> 32) & (kTableSize - 1)];
    out[3] = values[(bits >> 48) & (kTableSize - 1)];
  }
  for (; i < end; ++i) *out++ = values[(mix(stream + i / 4) >> (16 * (i % 4))) & (kTableSize - 1)];
}

template <class T>
void fill(const std::array<T, kTableSize>& values, T one, std::string_view name, uint64_t stream, uint64_t begin,
          uint64_t n, std::byte* out) {
  T* to = reinterpret_cast<T*>(out);
  if (name.ends_with("norm.weight")) {
    std::fill_n(to, n, one);
  } else {
    fill_random(values, stream, begin, n, to);
  }
}

}  // namespace

uint64_t synth_stream(uint64_t seed, uint64_t index) { return mix(seed) + (index << 40); }  // 2⁴² elements a tensor

void fill_synth(std::string_view name, DType dtype, uint64_t stream, uint64_t begin, uint64_t n, std::byte* out) {
  if (dtype == DType::bf16) {
    static const auto values = make_table<uint16_t>(0.02, [](double x) { return f32_to_bf16(static_cast<float>(x)); });
    fill(values, f32_to_bf16(1), name, stream, begin, n, out);
  } else if (dtype == DType::f8_e4m3) {
    static const auto values = make_table<uint8_t>(16, nearest_f8);
    fill(values, nearest_f8(1), name, stream, begin, n, out);
  } else {
    throw Error(ErrorKind::unsupported, str("synth makes bf16 and f8_e4m3, not ", to_string(dtype)));
  }
}

}  // namespace firstlight
