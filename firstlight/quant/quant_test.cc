// SPDX-License-Identifier: Apache-2.0
// Golden values: tools/make_source_testdata.py, by the Python packages gguf and torch.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/quant/convert.h"
#include "firstlight/quant/ggml.h"

namespace firstlight {
namespace {

std::vector<std::byte> read_golden(const char* name) {
  std::ifstream file(std::string(FIRSTLIGHT_TESTDATA "/source/") + name, std::ios::binary);
  std::vector<std::byte> bytes;
  for (std::istreambuf_iterator<char> it(file), end; it != end; ++it) bytes.push_back(static_cast<std::byte>(*it));
  EXPECT_FALSE(bytes.empty()) << name;
  return bytes;
}

/// Equal bits, or both NaN: payloads of NaN are not specified.
void expect_same(float got, float expected, const std::string& where) {
  if (std::isnan(expected)) {
    ASSERT_TRUE(std::isnan(got)) << where << ": " << got;
  } else {
    ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected))
        << where << ": " << got << " for " << expected;
  }
}

TEST(Ggml, DecodesEveryTypeBitForBitAsThePythonPackageDoes) {
  const auto golden = read_golden("quants.bin");
  std::set<std::string_view> seen;
  for (size_t at = 0; at < golden.size();) {
    uint32_t head[2];
    std::memcpy(head, golden.data() + at, sizeof head);
    at += sizeof head;
    const GgmlTypeInfo* type = find_ggml_type(head[0]);
    ASSERT_NE(type, nullptr) << head[0];
    seen.insert(type->name);
    const size_t n = head[1], stored = n / type->block_elements * type->block_bytes;
    std::vector<float> expected(n), got(n);
    ASSERT_LE(at + stored + n * 4, golden.size());
    std::memcpy(expected.data(), golden.data() + at + stored, n * 4);
    decode_ggml(*type, golden.data() + at, static_cast<int64_t>(n), got.data());
    std::vector<uint16_t> narrow(n);
    decode_ggml_to_bf16(*type, golden.data() + at, static_cast<int64_t>(n), narrow.data());
    for (size_t i = 0; i < n; ++i) {
      const std::string where = std::string(type->name) + " element " + std::to_string(i);
      expect_same(got[i], expected[i], where);
      expect_same(bf16_to_f32(narrow[i]), bf16_to_f32(f32_to_bf16(expected[i])), where + " as bf16");
    }
    at += stored + n * 4;
  }
  EXPECT_EQ(seen.size(), 13u);
}

TEST(Ggml, KnowsTheSizesOfTypesThatItDoesNotDecode) {
  const GgmlTypeInfo* type = find_ggml_type(16);
  ASSERT_NE(type, nullptr);
  EXPECT_EQ(type->name, "IQ2_XXS");
  EXPECT_EQ(type->block_bytes, 66u);
  std::byte block[66]{};
  float out[256];
  try {
    decode_ggml(*type, block, 256, out);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::unsupported);
  }
  for (const uint32_t removed : {4u, 5u, 31u, 33u, 36u, 38u, 1000u})
    EXPECT_EQ(find_ggml_type(removed), nullptr) << removed;
}

TEST(Convert, F8ValuesAreTorchs) {
  const auto golden = read_golden("f8.bin");
  ASSERT_EQ(golden.size(), 2u * 256 * 4);
  for (size_t i = 0; i < 512; ++i) {
    float expected;
    std::memcpy(&expected, golden.data() + i * 4, 4);
    const auto byte = static_cast<uint8_t>(i);
    expect_same(i < 256 ? f8_e4m3_to_f32(byte) : f8_e5m2_to_f32(byte), expected, std::to_string(i));
    float table = 0;
    const auto in = static_cast<std::byte>(byte);
    convert(i < 256 ? DType::f8_e4m3 : DType::f8_e5m2, &in, 1, DType::f32, reinterpret_cast<std::byte*>(&table));
    expect_same(table, expected, std::to_string(i) + " by table");
  }
}

TEST(Convert, EveryF16BecomesTheF32ThatTheProcessorSays) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    float got = 0;
    convert(DType::f16, reinterpret_cast<const std::byte*>(&h), 1, DType::f32, reinterpret_cast<std::byte*>(&got));
    expect_same(got, static_cast<float>(std::bit_cast<_Float16>(h)), std::to_string(bits));
  }
}

TEST(Convert, WorksAtAnyByteAndRoundsToNearestEven) {
  std::vector<std::byte> in(1 + 3 * 8), out(1 + 3 * 2);
  const double values[3] = {1.00390625, -3.0, 1e300};
  std::memcpy(in.data() + 1, values, sizeof values);
  convert(DType::f64, in.data() + 1, 3, DType::bf16, out.data() + 1);
  uint16_t got[3];
  std::memcpy(got, out.data() + 1, sizeof got);
  EXPECT_EQ(got[0], 0x3f80);
  EXPECT_EQ(got[1], 0xc040);
  EXPECT_EQ(got[2], 0x7f80);
}

TEST(Convert, RefusesIntegers) {
  const std::byte in[4]{};
  std::byte out[4];
  EXPECT_THROW(convert(DType::i32, in, 1, DType::f32, out), Error);
  EXPECT_THROW(convert(DType::f32, in, 1, DType::f16, out), Error);
}

}  // namespace
}  // namespace firstlight
