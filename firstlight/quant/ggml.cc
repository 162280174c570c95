// SPDX-License-Identifier: Apache-2.0
// Block layouts: https://github.com/ggml-org/ggml (ggml-common.h), values as gguf-py's quants.py computes them. Scales
// have 11 bits (f16), sub-scales at most 6, levels at most 6 (with sign), so each product is exact in f32 and only the
// last addition rounds: the results do not depend on whether a compiler fuses multiply and add.
#include "firstlight/quant/ggml.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/base/str.h"
#include "firstlight/quant/convert.h"

namespace firstlight {

namespace {

constexpr std::array<GgmlTypeInfo, 34> kTypes{{
    {0, "F32", 1, 4, true},          {1, "F16", 1, 2, true},          {2, "Q4_0", 32, 18, true},
    {3, "Q4_1", 32, 20, true},       {6, "Q5_0", 32, 22, true},       {7, "Q5_1", 32, 24, true},
    {8, "Q8_0", 32, 34, true},       {9, "Q8_1", 32, 40, false},      {10, "Q2_K", 256, 84, true},
    {11, "Q3_K", 256, 110, true},    {12, "Q4_K", 256, 144, true},    {13, "Q5_K", 256, 176, true},
    {14, "Q6_K", 256, 210, true},    {15, "Q8_K", 256, 292, false},   {16, "IQ2_XXS", 256, 66, false},
    {17, "IQ2_XS", 256, 74, false},  {18, "IQ3_XXS", 256, 98, false}, {19, "IQ1_S", 256, 50, false},
    {20, "IQ4_NL", 32, 18, false},   {21, "IQ3_S", 256, 110, false},  {22, "IQ2_S", 256, 82, false},
    {23, "IQ4_XS", 256, 136, false}, {24, "I8", 1, 1, false},         {25, "I16", 1, 2, false},
    {26, "I32", 1, 4, false},        {27, "I64", 1, 8, false},        {28, "F64", 1, 8, false},
    {29, "IQ1_M", 256, 56, false},   {30, "BF16", 1, 2, true},        {34, "TQ1_0", 256, 54, false},
    {35, "TQ2_0", 256, 66, false},   {39, "MXFP4", 32, 17, false},    {40, "NVFP4", 64, 36, false},
    {41, "Q1_0", 128, 18, false},
}};

float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof h);
  return f16_to_f32(h);
}

/// Nibbles of 16 bytes: the low ones are elements 0–15, the high ones 16–31.
struct Q4_0 {
  static constexpr int kElements = 32, kBytes = 18;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((b[2 + i] & 15) - 8);
      out[16 + i] = d * static_cast<float>((b[2 + i] >> 4) - 8);
    }
  }
};
struct Q4_1 {
  static constexpr int kElements = 32, kBytes = 20;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(b[4 + i] & 15) + m;
      out[16 + i] = d * static_cast<float>(b[4 + i] >> 4) + m;
    }
  }
};
/// The fifth bit of element i is bit i of a 32-bit word.
struct Q5_0 {
  static constexpr int kElements = 32, kBytes = 22;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b);
    uint32_t high;
    std::memcpy(&high, b + 2, sizeof high);
    for (int i = 0; i < 16; ++i) {
      const int low = static_cast<int>((b[6 + i] & 15) | ((high >> i) & 1) << 4);
      const int up = static_cast<int>((b[6 + i] >> 4) | ((high >> (16 + i)) & 1) << 4);
      out[i] = d * static_cast<float>(low - 16);
      out[16 + i] = d * static_cast<float>(up - 16);
    }
  }
};
struct Q5_1 {
  static constexpr int kElements = 32, kBytes = 24;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b), m = half_at(b + 2);
    uint32_t high;
    std::memcpy(&high, b + 4, sizeof high);
    for (int i = 0; i < 16; ++i) {
      const int low = static_cast<int>((b[8 + i] & 15) | ((high >> i) & 1) << 4);
      const int up = static_cast<int>((b[8 + i] >> 4) | ((high >> (16 + i)) & 1) << 4);
      out[i] = d * static_cast<float>(low) + m;
      out[16 + i] = d * static_cast<float>(up) + m;
    }
  }
};
struct Q8_0 {
  static constexpr int kElements = 32, kBytes = 34;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
  }
};

/// 16 groups of 16, 4-bit scale and minimum each; 2-bit levels: bits 2s, 2s+1 of bytes 32h … 32h+31 are elements 128h +
/// 32s ….
struct Q2_K {
  static constexpr int kElements = 256, kBytes = 84;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(b[group] & 15), minimum = dmin * static_cast<float>(b[group] >> 4);
      const uint8_t* q = b + 16 + group / 8 * 32 + group % 2 * 16;
      const int shift = group / 2 % 4 * 2;
      for (int i = 0; i < 16; ++i) out[16 * group + i] = scale * static_cast<float>((q[i] >> shift) & 3) - minimum;
    }
  }
};
/// As Q2_K with a third bit (inverted) in a mask of 32 bytes, and 16 signed scales of 6 bits in 12 bytes.
struct Q3_K {
  static constexpr int kElements = 256, kBytes = 110;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b + 108);
    const uint8_t* packed = b + 96;
    for (int group = 0; group < 16; ++group) {
      const int low = group < 8 ? packed[group] & 15 : packed[group - 8] >> 4;
      const int high = (packed[8 + group % 4] >> (group / 4 * 2)) & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      const uint8_t* q = b + 32 + group / 8 * 32 + group % 2 * 16;
      const uint8_t* mask = b + group % 2 * 16;
      const int shift = group / 2 % 4 * 2, bit = group / 2;
      for (int i = 0; i < 16; ++i) {
        const int level = ((q[i] >> shift) & 3) - (4 - 4 * ((mask[i] >> bit) & 1));
        out[16 * group + i] = scale * static_cast<float>(level);
      }
    }
  }
};

/// Scale and minimum of group 0–7 in the 12 bytes of Q4_K and Q5_K: 6 bits each.
struct ScaleMin {
  int scale, minimum;
};
ScaleMin scale_min(const uint8_t* s, int group) {
  if (group < 4) return {s[group] & 63, s[4 + group] & 63};
  return {(s[4 + group] & 15) | (s[group - 4] >> 2 & 0x30), s[4 + group] >> 4 | (s[group] >> 2 & 0x30)};
}

/// 8 groups of 32; low nibbles of bytes 32j … are group 2j, high ones group 2j + 1.
struct Q4_K {
  static constexpr int kElements = 256, kBytes = 144;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int group = 0; group < 8; ++group) {
      const ScaleMin s = scale_min(b + 4, group);
      const float scale = d * static_cast<float>(s.scale), minimum = dmin * static_cast<float>(s.minimum);
      const uint8_t* q = b + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) out[32 * group + i] = scale * static_cast<float>((q[i] >> shift) & 15) - minimum;
    }
  }
};
/// As Q4_K; the fifth bit of element i of group g is bit g of byte i of a mask.
struct Q5_K {
  static constexpr int kElements = 256, kBytes = 176;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b), dmin = half_at(b + 2);
    const uint8_t* mask = b + 16;
    for (int group = 0; group < 8; ++group) {
      const ScaleMin s = scale_min(b + 4, group);
      const float scale = d * static_cast<float>(s.scale), minimum = dmin * static_cast<float>(s.minimum);
      const uint8_t* q = b + 48 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        const int level = ((q[i] >> shift) & 15) | ((mask[i] >> group) & 1) << 4;
        out[32 * group + i] = scale * static_cast<float>(level) - minimum;
      }
    }
  }
};
/// Two halves of 128: four runs of 32, whose low nibbles stand in 64 bytes (runs 0, 1 low; 2, 3 high) and whose upper
/// two bits in 32 bytes.
struct Q6_K {
  static constexpr int kElements = 256, kBytes = 210;
  static void decode(const uint8_t* b, float* out) {
    const float d = half_at(b + 208);
    for (int run = 0; run < 8; ++run) {
      const uint8_t* low = b + run / 4 * 64 + run % 2 * 32;
      const uint8_t* high = b + 128 + run / 4 * 32;
      const int low_shift = run / 2 % 2 * 4, high_shift = run % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        const float scale = d * static_cast<float>(static_cast<int8_t>(b[192 + 2 * run + half]));
        for (int i = 16 * half; i < 16 * half + 16; ++i) {
          const int level = ((low[i] >> low_shift) & 15) | ((high[i] >> high_shift) & 3) << 4;
          out[32 * run + i] = scale * static_cast<float>(level - 32);
        }
      }
    }
  }
};

template <class Block>
void decode_blocks(const std::byte* blocks, int64_t n, float* out) {
  const auto* b = reinterpret_cast<const uint8_t*>(blocks);
  for (int64_t i = 0; i < n; i += Block::kElements, b += Block::kBytes) Block::decode(b, out + i);
}

template <class Block>
void decode_blocks(const std::byte* blocks, int64_t n, uint16_t* out) {
  const auto* b = reinterpret_cast<const uint8_t*>(blocks);
  std::array<float, Block::kElements> values;  // stays in L1
  for (int64_t i = 0; i < n; i += Block::kElements, b += Block::kBytes) {
    Block::decode(b, values.data());
    for (int j = 0; j < Block::kElements; ++j) out[i + j] = f32_to_bf16(values[static_cast<size_t>(j)]);
  }
}

template <class Out>
void decode_as(const GgmlTypeInfo& type, const std::byte* blocks, int64_t n, Out* out) {
  if (!type.decodable) throw Error(ErrorKind::unsupported, str("tensor type ", type.name, " is not decoded"));
  if (n < 0 || n % type.block_elements != 0) {
    throw Error(ErrorKind::bug,
                str("decode ", n, " elements of ", type.name, ": no multiple of ", type.block_elements));
  }
  constexpr DType to = sizeof(Out) == 4 ? DType::f32 : DType::bf16;
  switch (static_cast<GgmlType>(type.id)) {
    case GgmlType::f32:
      return convert(DType::f32, blocks, n, to, reinterpret_cast<std::byte*>(out));
    case GgmlType::f16:
      return convert(DType::f16, blocks, n, to, reinterpret_cast<std::byte*>(out));
    case GgmlType::bf16:
      return convert(DType::bf16, blocks, n, to, reinterpret_cast<std::byte*>(out));
    case GgmlType::q4_0:
      return decode_blocks<Q4_0>(blocks, n, out);
    case GgmlType::q4_1:
      return decode_blocks<Q4_1>(blocks, n, out);
    case GgmlType::q5_0:
      return decode_blocks<Q5_0>(blocks, n, out);
    case GgmlType::q5_1:
      return decode_blocks<Q5_1>(blocks, n, out);
    case GgmlType::q8_0:
      return decode_blocks<Q8_0>(blocks, n, out);
    case GgmlType::q2_k:
      return decode_blocks<Q2_K>(blocks, n, out);
    case GgmlType::q3_k:
      return decode_blocks<Q3_K>(blocks, n, out);
    case GgmlType::q4_k:
      return decode_blocks<Q4_K>(blocks, n, out);
    case GgmlType::q5_k:
      return decode_blocks<Q5_K>(blocks, n, out);
    case GgmlType::q6_k:
      return decode_blocks<Q6_K>(blocks, n, out);
  }
  throw Error(ErrorKind::bug, str("no decoder for ", type.name));
}

}  // namespace

const GgmlTypeInfo* find_ggml_type(uint32_t id) noexcept {
  const auto it = std::find_if(kTypes.begin(), kTypes.end(), [id](const GgmlTypeInfo& type) { return type.id == id; });
  return it == kTypes.end() ? nullptr : &*it;
}

void decode_ggml(const GgmlTypeInfo& type, const std::byte* blocks, int64_t n, float* out) {
  decode_as(type, blocks, n, out);
}

void decode_ggml_to_bf16(const GgmlTypeInfo& type, const std::byte* blocks, int64_t n, uint16_t* out) {
  decode_as(type, blocks, n, out);
}

}  // namespace firstlight
