// SPDX-License-Identifier: Apache-2.0
// The codec's exact promises: the rotation, the nearest code, the scale, the same bits by every variant, the extremes.
#include "firstlight/quant/turboquant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::turboquant {
namespace {

constexpr int kDims[] = {64, 128, 256};
constexpr int kBits[] = {2, 3, 4, 8};

const std::vector<int> kMagnitudes[] = {{}, {}, {6, 20}, {7, 22, 39, 62}, {3, 9, 15, 21, 28, 36, 46, 60}};

/// The integer of a code, from the tables alone.
int integer_of(int bits, uint32_t code) {
  if (bits == 8) return static_cast<int8_t>(code);
  const auto& table = kMagnitudes[bits];
  const int magnitude = table.at(code & (table.size() - 1));
  return code < table.size() ? magnitude : -magnitude;
}

std::vector<float> random_vector(int d, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(static_cast<size_t>(d));
  for (float& each : x) each = normal(random);
  return x;
}

/// Π x from the definition, in double: H(i, j) = (-1)^popcount(i & j) / √d, after signs, round by round.
std::vector<double> rotated(const std::vector<float>& x, const Signs& signs, int n_rounds) {
  const size_t d = x.size();
  std::vector<double> y(x.begin(), x.end());
  for (int round = 0; round < n_rounds; ++round) {
    std::vector<double> next(d, 0.0);
    for (size_t i = 0; i < d; ++i) {
      for (size_t j = 0; j < d; ++j) {
        const bool flip = (signs.bits[round][j / 64] >> (j % 64) & 1u) != (__builtin_popcountll(i & j) % 2 != 0);
        next[i] += flip ? -y[j] : y[j];
      }
      next[i] /= std::sqrt(static_cast<double>(d));
    }
    y = next;
  }
  return y;
}

struct Encoded {
  std::vector<uint8_t> codes;
  uint16_t scale = 0xffff;
  bool finite = false;
};
Encoded encoded(const Codec& by, int bits, const Signs& signs, const std::vector<float>& x) {
  Encoded out;
  out.codes.assign(x.size(), 0xaa);
  out.finite = by.encode(static_cast<int>(x.size()), bits, signs, x.data(), out.codes.data(), &out.scale);
  return out;
}

TEST(TurboQuant, TheRotationIsSignsAndHadamardInTurns) {
  for (const int d : kDims) {
    const Signs signs = signs_of(11, 4, 2, Side::key);
    const std::vector<float> x = random_vector(d, 1);
    const std::vector<double> expected = rotated(x, signs, d == 64 ? 3 : 2);
    for (const Codec* codec : codecs()) {
      std::vector<float> y(x.size()), back(x.size());
      codec->rotate(d, signs, x.data(), y.data());
      codec->unrotate(d, signs, y.data(), back.data());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_NEAR(y[i], expected[i], 2e-6) << codec->name << ", d " << d << ", value " << i;
        ASSERT_NEAR(back[i], x[i], 2e-6) << codec->name << ", d " << d << ", value " << i;
      }
    }
  }
}

TEST(TurboQuant, EachCodeIsTheNearestLevelAndTheScaleMakesTheProductExact) {
  for (const int d : kDims) {
    for (const int bits : kBits) {
      for (uint32_t seed = 0; seed < 20; ++seed) {
        const Signs signs = signs_of(seed, 0, 1, Side::value);
        const std::vector<float> x = random_vector(d, seed, 3);
        const Encoded e = encoded(codec(), bits, signs, x);
        ASSERT_TRUE(e.finite);
        const std::vector<double> y = rotated(x, signs, d == 64 ? 3 : 2);
        double norm2 = 0, product = 0, largest = 0;
        for (size_t i = 0; i < y.size(); ++i) {
          norm2 += y[i] * y[i], product += y[i] * integer_of(bits, e.codes[i]);
          largest = std::max(largest, std::abs(y[i]));
        }
        EXPECT_NEAR(scale_of(e.scale) * product / norm2, 1, 6e-4) << "fp16 has 11 bits";
        const double step = bits == 8   ? largest / 127
                            : bits == 4 ? std::sqrt(norm2 / d) * (d == 64    ? .044055
                                                                  : d == 128 ? .044635
                                                                             : .044902)
                            : bits == 3 ? std::sqrt(norm2 / d) * (d == 64    ? .034069
                                                                  : d == 128 ? .034344
                                                                             : .034482)
                                        : std::sqrt(norm2 / d) * (d == 64    ? .075034
                                                                  : d == 128 ? .075260
                                                                             : .075410);
        for (size_t i = 0; i < y.size(); ++i) {
          const double distance = std::abs(y[i] / step - integer_of(bits, e.codes[i]));
          for (uint32_t other = 0; other < (1u << bits); ++other) {
            if (bits == 8 && other == 128) continue;  // −128 is no code
            ASSERT_LE(distance, std::abs(y[i] / step - integer_of(bits, other)) + 1e-3)
                << "d " << d << " bits " << bits;
          }
        }
      }
    }
  }
}

TEST(TurboQuant, LevelsAreTheCodebooks) {
  for (uint32_t code = 0; code < 16; ++code) {
    EXPECT_EQ(level<4>(code), integer_of(4, code));
    EXPECT_EQ(level<3>(code % 8), integer_of(3, code % 8));
    EXPECT_EQ(level<2>(code % 4), integer_of(2, code % 4));
  }
  EXPECT_EQ(level<8>(0x81), -127);
}

TEST(TurboQuant, EveryVariantGivesTheSameBits) {
  if (codecs().size() == 1) GTEST_SKIP() << "this processor runs the plain codec only";
  for (const int d : kDims) {
    for (uint32_t seed = 0; seed < 400; ++seed) {
      const Signs signs = signs_of(seed, static_cast<int>(seed), 0, Side::key);
      std::vector<float> x = random_vector(d, seed, std::ldexp(1.0f, static_cast<int>(seed % 60) - 30));
      if (seed % 5 == 1) x.assign(x.size(), 0.25f);
      if (seed % 5 == 2) x[seed % 64] *= 1e4f;
      if (seed % 5 == 3) x.assign(x.size(), 0), x[seed % 64] = -3;
      std::vector<float> first(x.size()), y(x.size());
      std::vector<int16_t> first_q(x.size()), q(x.size());
      kCodecPlain.rotate(d, signs, x.data(), first.data());
      const float first_unit = kCodecPlain.fix_query(d, signs, x.data(), first_q.data());
      for (const Codec* codec : codecs()) {
        codec->rotate(d, signs, x.data(), y.data());
        ASSERT_EQ(std::memcmp(y.data(), first.data(), y.size() * 4), 0) << codec->name << ", rotate, seed " << seed;
        ASSERT_EQ(codec->fix_query(d, signs, x.data(), q.data()), first_unit) << codec->name;
        ASSERT_EQ(q, first_q) << codec->name << ", query, seed " << seed;
        for (const int bits : kBits) {
          const Encoded expected = encoded(kCodecPlain, bits, signs, x), found = encoded(*codec, bits, signs, x);
          ASSERT_EQ(found.codes, expected.codes)
              << codec->name << ", d " << d << ", bits " << bits << ", seed " << seed;
          ASSERT_EQ(found.scale, expected.scale)
              << codec->name << ", d " << d << ", bits " << bits << ", seed " << seed;
        }
        codec->unrotate(d, signs, y.data(), y.data());
        std::vector<float> back(x.size());
        kCodecPlain.unrotate(d, signs, first.data(), back.data());
        ASSERT_EQ(std::memcmp(y.data(), back.data(), y.size() * 4), 0) << codec->name << ", unrotate, seed " << seed;
      }
    }
  }
}

TEST(TurboQuant, ZeroAndTheTiniestVectorsAreZero) {
  for (const Codec* codec : codecs()) {
    for (const float tiny : {0.0f, -0.0f, 1e-40f, 1e-20f, 1e-12f}) {
      for (const int bits : kBits) {
        const Encoded e = encoded(*codec, bits, signs_of(1, 2, 3, Side::key), std::vector<float>(64, tiny));
        EXPECT_TRUE(e.finite);
        EXPECT_EQ(e.scale, 0) << codec->name << " " << tiny;
        EXPECT_EQ(e.codes, std::vector<uint8_t>(64, 0));
      }
    }
  }
}

TEST(TurboQuant, WhatIsNotFiniteIsReportedAndNeverStored) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const Codec* codec : codecs()) {
    for (const float wrong : {kInf, -kInf, std::nanf(""), 3e38f, 1e20f}) {
      for (const int at : {0, 63, 127}) {
        for (const int bits : kBits) {
          std::vector<float> x = random_vector(128, 3);
          x[static_cast<size_t>(at)] = wrong;
          const Encoded e = encoded(*codec, bits, signs_of(1, 0, 0, Side::key), x);
          EXPECT_FALSE(e.finite) << codec->name << " " << wrong;
          EXPECT_EQ(e.scale, 0);
          EXPECT_EQ(e.codes, std::vector<uint8_t>(128, 0));
        }
      }
    }
    std::vector<int16_t> q(64, 7);
    EXPECT_EQ(codec->fix_query(64, signs_of(1, 0, 0, Side::key), std::vector<float>(64, 0.0f).data(), q.data()), 0);
    EXPECT_EQ(q, std::vector<int16_t>(64, 0));
  }
}

TEST(TurboQuant, ScalesAreTheNearestHalfOfSixtyFourTimesTheValueAndFinite) {
  std::mt19937 random(9);
  std::uniform_real_distribution<double> exponent(-32, 12);
  for (int i = 0; i < 100000; ++i) {
    const float x = static_cast<float>(std::exp2(exponent(random)));
    const uint16_t half = stored_scale(x);
    ASSERT_LT(half, 0x7c00) << x;
    ASSERT_EQ(scale_of(half), f16_to_f32(half) / 64) << x;
    const double wide = static_cast<double>(x) * 64;
    if (wide >= 65504) {
      ASSERT_EQ(half, 0x7bff) << x;
      continue;
    }
    const double error = std::abs(f16_to_f32(half) - wide);
    const int below = std::max(0, half - 1), above = std::min(0x7bff, half + 1);
    ASSERT_LE(error, std::abs(f16_to_f32(static_cast<uint16_t>(below)) - wide)) << x;
    ASSERT_LE(error, std::abs(f16_to_f32(static_cast<uint16_t>(above)) - wide)) << x;
  }
  // Ties go to the even one.
  EXPECT_EQ(stored_scale(std::ldexp(2049.0f, -6)), stored_scale(std::ldexp(2048.0f, -6)));
  EXPECT_EQ(stored_scale(std::ldexp(2051.0f, -6)), stored_scale(std::ldexp(2052.0f, -6)));
  EXPECT_EQ(stored_scale(0), 0);
  EXPECT_EQ(stored_scale(std::ldexp(1.0f, -31)), 0) << "half of the smallest half, 2^-24, ties to zero";
  EXPECT_EQ(stored_scale(std::ldexp(3.0f, -31)), 2);
}

TEST(TurboQuant, QueriesKeepFifteenBits) {
  for (const int d : kDims) {
    const Signs signs = signs_of(1, 1, 1, Side::key);
    const std::vector<float> x = random_vector(d, 8, 5);
    const std::vector<double> y = rotated(x, signs, d == 64 ? 3 : 2);
    std::vector<int16_t> q(x.size());
    const float unit = codec().fix_query(d, signs, x.data(), q.data());
    int largest = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      ASSERT_NEAR(q[i] * static_cast<double>(unit), y[i], unit * 0.51) << i;
      largest = std::max(largest, std::abs(int{q[i]}));
    }
    EXPECT_EQ(largest, 16256);
  }
}

TEST(TurboQuant, EveryLayerHeadAndSideHasSignsOfItsOwn) {
  std::set<uint64_t> seen;
  for (int layer = 0; layer < 40; ++layer) {
    for (int head = 0; head < 8; ++head) {
      for (const Side side : {Side::key, Side::value}) seen.insert(signs_of(5, layer, head, side).bits[0][0]);
    }
  }
  EXPECT_EQ(seen.size(), 40u * 8 * 2);
  EXPECT_NE(signs_of(5, 0, 0, Side::key).bits[0][0], signs_of(6, 0, 0, Side::key).bits[0][0]);
}

TEST(TurboQuant, OtherHeadSizesAreRefusedByName) {
  for (const int d : kDims) EXPECT_NO_THROW(require_head_dim(d));
  for (const int d : {0, 32, 80, 96, 112, 192, 512}) {
    try {
      require_head_dim(d);
      ADD_FAILURE() << d;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::unsupported);
      EXPECT_NE(std::string(error.what()).find(std::to_string(d)), std::string::npos) << error.what();
    }
  }
}

TEST(TurboQuantPage, HasTheSizesOfTheFormat) {
  // 66 B a vector at 4 bits and d = 128, 34 B at 64: 8448 and 4352 B a page of keys and values.
  const auto vector_bytes = [](int d, int bits) { return PageShape{d, bits, bits}.bytes() / 64.0 / 2; };
  EXPECT_EQ(vector_bytes(128, 4), 66);
  EXPECT_EQ(vector_bytes(64, 4), 34);
  EXPECT_EQ(vector_bytes(128, 3), 50);
  EXPECT_EQ(vector_bytes(64, 3), 26);
  EXPECT_EQ(vector_bytes(128, 2), 34);
  EXPECT_EQ(vector_bytes(64, 8), 66);
  EXPECT_EQ((PageShape{128, 4, 4}.bytes()), 8448);
  EXPECT_EQ((PageShape{64, 4, 3}.bytes()), 64 * (34 + 26));
  EXPECT_EQ((PageShape{64, 3, 2}.bytes()), 64 * (26 + 18));
}

TEST(TurboQuantPage, GivesBackEveryCodeWhateverTheOrderOfWriting) {
  std::mt19937 random(10);
  for (const int d : kDims) {
    for (const int bits : kBits) {
      const PageShape shape{d, bits, bits};
      std::vector<uint8_t> page(static_cast<size_t>(shape.bytes()), 0xff);
      std::vector<std::vector<uint32_t>> keys(64), values(64);
      std::vector<int> order(64);
      for (int t = 0; t < 64; ++t) order[static_cast<size_t>(t)] = t;
      std::shuffle(order.begin(), order.end(), random);
      for (int pass = 0; pass < 2; ++pass) {  // the second overwrites
        for (const int t : order) {
          auto &key = keys[static_cast<size_t>(t)], &value = values[static_cast<size_t>(t)];
          key.clear(), value.clear();
          for (int i = 0; i < d; ++i) {
            key.push_back(static_cast<uint32_t>(random()) & ((1u << bits) - 1));
            value.push_back(static_cast<uint32_t>(random()) & ((1u << bits) - 1));
            put_key_code(page.data() + t * shape.key_bytes(), d, bits, i, key.back());
            put_value_code(page.data() + shape.values_at() + t / 4 * shape.quad_bytes(), d, bits, t % 4, i,
                           value.back());
          }
        }
      }
      for (int t = 0; t < 64; ++t) {
        for (int i = 0; i < d; ++i) {
          ASSERT_EQ(key_code(page.data() + t * shape.key_bytes(), d, bits, i),
                    keys[static_cast<size_t>(t)][static_cast<size_t>(i)]);
          ASSERT_EQ(value_code(page.data() + shape.values_at() + t / 4 * shape.quad_bytes(), d, bits, t % 4, i),
                    values[static_cast<size_t>(t)][static_cast<size_t>(i)]);
        }
      }
      for (int i = shape.key_scales_at(); i < shape.bytes(); ++i) ASSERT_EQ(page[static_cast<size_t>(i)], 0xff) << i;
    }
  }
}

TEST(TurboQuantPage, FourBitsLieAsTheTensorCoresWantThem) {
  std::vector<uint8_t> page(static_cast<size_t>(PageShape{64, 4, 4}.bytes()), 0);
  put_key_code(page.data() + 2 * 32, 64, 4, 5, 0xb);  // token 2, coordinate 5: nibble 5 of its 32 bytes
  EXPECT_EQ(page[2 * 32 + 2], 0xb0);
  put_value_code(page.data() + 64 * 32 + 3 * 128, 64, 4, 1, 7, 0x9);  // token 13, coordinate 7: 16 bits of its own
  EXPECT_EQ(page[64 * 32 + 3 * 128 + 14], 0x90);
}

TEST(TurboQuantHeader, IsReadBackAndEveryOtherFormatIsRefusedByName) {
  const Format format{128, 4, 3, 0x0123456789abcdefu, 42};
  const auto header = to_header(format);
  const unsigned char expected[] = {'F', 'L', 'T', 'Q', 1, 0, 0, 0, 128, 0, 0, 0, 4, 3, 'I', 2};
  EXPECT_EQ(std::memcmp(header.data(), expected, sizeof expected), 0);
  EXPECT_NO_THROW(require_format(header, format));
  const auto refused = [&](Format other, const char* field) {
    try {
      require_format(header, other);
      ADD_FAILURE() << field;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    }
  };
  refused({64, 4, 3, format.seed, 42}, "head_dim");
  refused({128, 3, 3, format.seed, 42}, "key_bits");
  refused({128, 4, 4, format.seed, 42}, "value_bits");
  refused({128, 4, 3, 1, 42}, "seed");
  refused({128, 4, 3, format.seed, 0}, "centring");
  auto newer = header;
  newer[4] = std::byte{2};
  try {
    require_format(newer, format);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::unsupported);
  }
  newer = header;
  newer[0] = std::byte{0};
  EXPECT_THROW(require_format(newer, format), Error);
  EXPECT_THROW(require_format(std::span(header).first(31), format), Error);
}

}  // namespace
}  // namespace firstlight::turboquant
