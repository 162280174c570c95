// SPDX-License-Identifier: Apache-2.0
// KV caches that the product does not have, for measuring what its parts are worth: keys and values are replaced by
// what they would be read back as, and attention is that of an f32 cache.
#pragma once
#include <memory>
#include <span>
#include <string_view>

#include "bench/vector_formats.h"
#include "firstlight/ops/ops.h"

namespace firstlight {

struct KvVariant {
  std::string_view name;
  VectorFormat key, value;
  int sinks = 1;  ///< first pages that are read exactly (in bf16, as the product does), …
  int tail = 3;   ///< … and last ones, the query's own among them
};

std::span<const KvVariant> kv_variants();
/// Null if there is none of that name.
const KvVariant* find_kv_variant(std::string_view name);

/// CPU arithmetic for a runner with `n_pages` pages of kind f32 and one rank; its own pages stay untouched: the Ops
/// keep each page twice, exactly and as the variant reads it. `pool` must outlive it.
std::unique_ptr<Ops> make_variant_ops(ThreadPool& pool, const KvVariant& variant, int64_t n_pages);

}  // namespace firstlight
