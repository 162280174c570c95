// SPDX-License-Identifier: Apache-2.0
// What a load would read, from the manifest and the parts' headers alone, or before anything is written.
#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/load_files.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/shard_layout.h"

namespace firstlight {

namespace {

uint64_t divide_up(uint64_t n, uint64_t by) { return (n + by - 1) / by; }

/// A tail is one request, from the start of the leaf that it begins in; what is before it goes by kRequestBytes.
uint64_t n_requests(uint64_t data_bytes, uint64_t tail_begin) {
  if (tail_begin == data_bytes) return divide_up(data_bytes, kRequestBytes);
  return 1 + divide_up(tail_begin / kLeafBytes * kLeafBytes, kRequestBytes);
}

void add_part(PlanRank& rank, uint64_t data_bytes, uint64_t tail_begin) {
  rank.bytes += data_bytes;
  rank.aligned_bytes += tail_begin;
  rank.n_reads += n_requests(data_bytes, tail_begin);
  rank.n_leaves += divide_up(data_bytes, kLeafBytes);
  rank.n_parts += 1;
}

}  // namespace

LoadPlan plan_load(const fs::path& out, int tp) {
  const Manifest manifest = read_manifest(out);
  const ModelConfig config = parse_hf_config(read_listed(out, manifest, "config.json"));
  const ManifestTp& stored = stored_tp(manifest, config, out, tp);
  check_architecture(config, manifest, out);
  check_tensor_list(config, manifest);
  LoadPlan plan;
  plan.tp = tp;
  for (const ManifestRank& rank : stored.ranks) {
    PlanRank one;
    one.rank = static_cast<int>(plan.ranks.size());
    std::vector<SafetensorsHeader> headers;
    for (const ManifestPart& part : rank.parts) {
      headers.push_back(open_part(out, manifest, part).header);
      add_part(one, part.data_bytes, part.tail_begin);
    }
    one.arena_bytes = lay_out_arena(config, manifest, rank, tp, one.rank, headers).bytes;
    plan.ranks.push_back(one);
  }
  return plan;
}

LoadPlan plan_source(const Source& source, int tp, uint64_t part_bytes) {
  require_tp(source.config(), tp);
  const std::vector<StoredTensor> tensors = stored_tensors(source, default_dtype(source));
  const RankLayout layout = lay_out(source.config(), tensors, tp, part_bytes);
  std::vector<DType> dtypes;
  for (const StoredTensor& tensor : tensors) dtypes.push_back(tensor.dtype);
  LoadPlan plan;
  plan.tp = tp;
  for (int rank = 0; rank < tp; ++rank) {
    PlanRank one;
    one.rank = rank;
    for (const PartLayout& part : layout.parts) add_part(one, part.data_bytes, part.tail_begin);
    one.arena_bytes = lay_out_arena(source.config(), dtypes, tp, rank).bytes;
    plan.ranks.push_back(one);
  }
  return plan;
}

}  // namespace firstlight
