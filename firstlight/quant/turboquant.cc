// SPDX-License-Identifier: Apache-2.0
#include "firstlight/quant/turboquant.h"

#include <cstring>
#include <string_view>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::turboquant {

namespace {

constexpr std::array<const Codec*, 3> all_codecs() {
#if defined(__x86_64__)
  return {&kCodecPlain, &kCodecAvx2, &kCodecAvx512};
#else
  return {&kCodecPlain, nullptr, nullptr};
#endif
}

size_t count_codecs() noexcept {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2")) return 1;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? 3 : 2;
#else
  return 1;
#endif
}

/// SplitMix64's output function: each bit of the result depends on each bit of x.
uint64_t mixed(uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <class T>
void put(std::byte*& at, T value) {
  for (size_t i = 0; i < sizeof value; ++i) *at++ = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i));
}
template <class T>
T take(const std::byte*& at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<uint64_t>(*at++) << (8 * i);
  return static_cast<T>(value);
}

void require_same(std::string_view field, uint64_t found, uint64_t expected) {
  if (found == expected) return;
  throw Error(ErrorKind::bad_input, str("TurboQuant codes: ", field, " is ", found, ", expected ", expected));
}

}  // namespace

std::span<const Codec* const> codecs() noexcept {
  static constexpr std::array<const Codec*, 3> kAll = all_codecs();
  static const size_t n = count_codecs();
  return std::span(kAll).first(n);
}

const Codec& codec() noexcept { return *codecs().back(); }

void require_head_dim(int head_dim) {
  if (head_dim == 64 || head_dim == 128 || head_dim == 256) return;
  throw Error(ErrorKind::unsupported,
              str("TurboQuant: head_dim ", head_dim, " is not done, only 64, 128 and 256; use a bf16 KV cache"));
}

Signs signs_of(uint64_t seed, int layer, int kv_head, Side side) noexcept {
  Signs signs{};
  const uint64_t place =
      static_cast<uint64_t>(layer) << 33 | static_cast<uint64_t>(kv_head) << 1 | (side == Side::value ? 1u : 0u);
  uint64_t state = mixed(seed + 0x9e3779b97f4a7c15u) ^ mixed(place + 0xd1b54a32d192ed03u);
  for (auto& round : signs.bits) {
    for (uint64_t& word : round) word = mixed(state += 0x9e3779b97f4a7c15u);
  }
  return signs;
}

std::array<std::byte, kHeaderBytes> to_header(const Format& format) {
  std::array<std::byte, kHeaderBytes> header{};
  std::byte* at = header.data();
  std::memcpy(at, "FLTQ", 4);
  at += 4;
  put(at, kFormatVersion);
  put(at, static_cast<uint32_t>(format.head_dim));
  put(at, static_cast<uint8_t>(format.key_bits));
  put(at, static_cast<uint8_t>(format.value_bits));
  put(at, static_cast<uint8_t>('I'));
  put(at, static_cast<uint8_t>(rounds(format.head_dim)));
  put(at, format.seed);
  put(at, format.centring);
  return header;
}

void require_format(std::span<const std::byte> header, const Format& expected) {
  if (header.size() != kHeaderBytes || std::memcmp(header.data(), "FLTQ", 4) != 0) {
    throw Error(ErrorKind::bad_input, str("TurboQuant codes: ", header.size(), " bytes of header, expected ",
                                          kHeaderBytes, " that begin with FLTQ"));
  }
  const std::byte* at = header.data() + 4;
  if (const auto version = take<uint32_t>(at); version != kFormatVersion) {
    throw Error(ErrorKind::unsupported,
                str("TurboQuant codes: version ", version, ", this program reads version ", kFormatVersion));
  }
  require_same("head_dim", take<uint32_t>(at), static_cast<uint64_t>(expected.head_dim));
  require_same("key_bits", take<uint8_t>(at), static_cast<uint64_t>(expected.key_bits));
  require_same("value_bits", take<uint8_t>(at), static_cast<uint64_t>(expected.value_bits));
  if (const auto book = take<uint8_t>(at); book != 'I') {
    throw Error(ErrorKind::unsupported, str("TurboQuant codes: codebook ", int{book}, ", this program has 73 (I)"));
  }
  require_same("rounds", take<uint8_t>(at), static_cast<uint64_t>(rounds(expected.head_dim)));
  require_same("seed", take<uint64_t>(at), expected.seed);
  require_same("centring", take<uint64_t>(at), expected.centring);
}

}  // namespace firstlight::turboquant
