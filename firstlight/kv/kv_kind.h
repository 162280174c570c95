// SPDX-License-Identifier: Apache-2.0
// Kinds of a paged KV cache, the size of a page of each, and which pages a query reads exactly.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace firstlight {

/// Tokens in a page.
inline constexpr int kPageTokens = 64;

/// How keys and values are stored: as numbers, or as TurboQuant codes of so many bits (tq8: keys and values of 8, k8v4:
/// keys of 8 and values of 4, …).
enum class KvKind { f32, bf16, tq8, k8v4, tq4, k4v3, tq3, k3v2 };
inline constexpr KvKind kKvKinds[] = {KvKind::f32, KvKind::bf16, KvKind::tq8, KvKind::k8v4,
                                      KvKind::tq4, KvKind::k4v3, KvKind::tq3, KvKind::k3v2};
std::string_view to_string(KvKind kind) noexcept;
std::optional<KvKind> kv_kind_from(std::string_view name) noexcept;
/// Bytes of one element of f32 and bf16.
int kv_element_bytes(KvKind kind) noexcept;

/// Bits of a code; both 0 for f32 and bf16.
struct KvBits {
  int key = 0, value = 0;
};
KvBits kv_bits(KvKind kind) noexcept;
inline bool is_compressed(KvKind kind) noexcept { return kv_bits(kind).key != 0; }
/// One page of one layer, keys and values: [k, v][n_kv_heads][64][head_dim] numbers, or [n_kv_heads] pages of codes as
/// quant/turboquant_page.h has them. Throws Error{unsupported} for a head_dim that codes do not come in.
uint64_t kv_page_bytes(KvKind kind, int n_kv_heads, int head_dim);

/// A query at a position in page number `last` of its sequence reads page `page` as bf16: the first page, where
/// attention sinks, and the last three, 129 to 192 tokens. All others it reads as codes: so a result depends on the
/// query's position, never on where chunks began. Without
/// them the divergence at 4 bits is ten times higher.
inline constexpr int64_t kExactTail = 3;
constexpr bool is_exact(int64_t page, int64_t last) noexcept { return page == 0 || page + kExactTail > last; }
/// Exact pages that sequences need at most, when a pass computes up to `pass_tokens` tokens of `n_sequences`: four
/// each, one more for a chunk that begins within a page, and those that the pass itself fills; but never more than the
/// pages that they have, `n_pages` in all.
constexpr int64_t exact_pages_for(int64_t n_sequences, int64_t pass_tokens, int64_t n_pages) noexcept {
  const int64_t held = n_sequences * (kExactTail + 2) + pass_tokens / kPageTokens;
  return held < n_pages ? held : n_pages;
}

}  // namespace firstlight
