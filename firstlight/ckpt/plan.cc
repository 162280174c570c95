// SPDX-License-Identifier: Apache-2.0
// What a load would read, from the manifest and the parts' headers alone.
#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/load_files.h"
#include "firstlight/ckpt/shard.h"

namespace firstlight {

namespace {

uint64_t divide_up(uint64_t n, uint64_t by) { return (n + by - 1) / by; }

/// A tail is one request, from the start of the leaf that it begins in; what is before it goes by kRequestBytes.
uint64_t n_requests(const ManifestPart& part) {
  if (part.tail_begin == part.data_bytes) return divide_up(part.data_bytes, kRequestBytes);
  return 1 + divide_up(part.tail_begin / kLeafBytes * kLeafBytes, kRequestBytes);
}

}  // namespace

LoadPlan plan_load(const fs::path& out, int tp) {
  const Manifest manifest = read_manifest(out);
  const ModelConfig config = parse_hf_config(read_listed(out, manifest, "config.json"));
  const ManifestTp& stored = stored_tp(manifest, config, out, tp);
  check_tensor_list(config, manifest);
  LoadPlan plan;
  plan.tp = tp;
  for (const ManifestRank& rank : stored.ranks) {
    PlanRank one;
    one.rank = static_cast<int>(plan.ranks.size());
    std::vector<SafetensorsHeader> headers;
    for (const ManifestPart& part : rank.parts) {
      headers.push_back(open_part(out, manifest, part).header);
      one.bytes += part.data_bytes;
      one.aligned_bytes += part.tail_begin;
      one.n_reads += n_requests(part);
      one.n_leaves += divide_up(part.data_bytes, kLeafBytes);
    }
    one.n_parts = rank.parts.size();
    one.arena_bytes = lay_out_arena(config, manifest, rank, tp, one.rank, headers).bytes;
    plan.ranks.push_back(one);
  }
  return plan;
}

}  // namespace firstlight
