// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/kv_kind.h"

#include "firstlight/quant/turboquant.h"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight {

static_assert(kPageTokens == turboquant::kPageSlots);

std::string_view to_string(KvKind kind) noexcept {
  switch (kind) {
    case KvKind::f32:
      return "f32";
    case KvKind::bf16:
      return "bf16";
    case KvKind::tq8:
      return "tq8";
    case KvKind::k8v4:
      return "k8v4";
    case KvKind::tq4:
      return "tq4";
    case KvKind::k4v3:
      return "k4v3";
    case KvKind::tq3:
      return "tq3";
    case KvKind::k3v2:
      return "k3v2";
  }
  return "?";
}

std::optional<KvKind> kv_kind_from(std::string_view name) noexcept {
  for (const KvKind kind : kKvKinds) {
    if (name == to_string(kind)) return kind;
  }
  return std::nullopt;
}

int kv_element_bytes(KvKind kind) noexcept { return kind == KvKind::f32 ? 4 : 2; }

KvBits kv_bits(KvKind kind) noexcept {
  switch (kind) {
    case KvKind::f32:
    case KvKind::bf16:
      return {};
    case KvKind::tq8:
      return {8, 8};
    case KvKind::k8v4:
      return {8, 4};
    case KvKind::tq4:
      return {4, 4};
    case KvKind::k4v3:
      return {4, 3};
    case KvKind::tq3:
      return {3, 3};
    case KvKind::k3v2:
      return {3, 2};
  }
  return {};
}

uint64_t kv_page_bytes(KvKind kind, int n_kv_heads, int head_dim) {
  const auto heads = static_cast<uint64_t>(n_kv_heads);
  if (!is_compressed(kind)) {
    return 2 * heads * kPageTokens * static_cast<uint64_t>(head_dim) * static_cast<uint64_t>(kv_element_bytes(kind));
  }
  turboquant::require_head_dim(head_dim);
  const KvBits bits = kv_bits(kind);
  return heads * static_cast<uint64_t>(turboquant::PageShape{head_dim, bits.key, bits.value}.bytes());
}

}  // namespace firstlight
