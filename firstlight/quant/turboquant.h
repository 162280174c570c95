// SPDX-License-Identifier: Apache-2.0
// TurboQuant (arXiv 2504.19874, algorithm 1) as Firstlight stores it: a signed Hadamard rotation, a fixed integer
// codebook, and one scale a vector that leaves inner products unbiased (EDEN, arXiv 2604.18555).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "firstlight/quant/turboquant_kernels.h"

namespace firstlight::turboquant {

/// The fastest codec that this core runs; all give the same bits.
const Codec& codec() noexcept;
/// All that this core runs, "plain" first.
std::span<const Codec* const> codecs() noexcept;

/// Throws Error{unsupported} naming what is not done: head_dim 64, 128 and 256 are.
void require_head_dim(int head_dim);

enum class Side { key, value };
/// Of all signs in version 1 of the format: any other one would do as well.
inline constexpr uint64_t kSeed = 1;
/// The rotation's signs for one head of one layer. `kv_head` counts over the whole model, so that a rank's rotation
/// does not depend on tp.
Signs signs_of(uint64_t seed, int layer, int kv_head, Side side) noexcept;

/// Everything that a reader of stored codes must agree on.
struct Format {
  int head_dim = 0;
  int key_bits = 0, value_bits = 0;  ///< 2, 3, 4 or 8
  uint64_t seed = 0;
  uint64_t centring = 0;  ///< XXH3-64 of the means that were subtracted; 0: none were
  bool operator==(const Format&) const = default;
};

/// Version 1, little-endian: "FLTQ", version u32, head_dim u32, key_bits u8, value_bits u8, codebook u8 ('I'), rounds
/// u8, seed u64, centring u64.
inline constexpr size_t kHeaderBytes = 32;
inline constexpr uint32_t kFormatVersion = 1;
std::array<std::byte, kHeaderBytes> to_header(const Format& format);
/// Throws Error{bad_input} for bytes that are no header, Error{unsupported} for another version or codebook, and
/// Error{bad_input} naming the field, what was found and what was expected, if it is another format than `expected`.
void require_format(std::span<const std::byte> header, const Format& expected);

}  // namespace firstlight::turboquant
