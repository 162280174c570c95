// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/load_jobs.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/copy.h"
#include "firstlight/io/request_order.h"

namespace firstlight {

namespace {

bool has_tail(const ManifestPart& part) { return part.tail_begin < part.data_bytes; }

/// Where bodies end: the leaf in which the tail begins is read with the tail.
uint64_t body_end(const ManifestPart& part) {
  return has_tail(part) ? part.tail_begin / kLeafBytes * kLeafBytes : part.data_bytes;
}

/// In the arena.
uint64_t tail_bytes(const ManifestPart& part) {
  return (part.data_bytes - body_end(part) + kPageBytes - 1) / kPageBytes * kPageBytes;
}

/// The target of the job's middle byte: behind a header of 2 MiB a request of 16 MiB lies on two stripes, most of it on
/// the first.
int target_of(const LoadJob& job, const RankFiles& files, const LoadSpread& spread) {
  if (spread.layouts.empty()) return -1;
  const auto found = spread.layouts.find(fs::absolute(files.parts[job.part]->path()).native());
  return found == spread.layouts.end() ? -1 : found->second.target_of(job.file_begin() + job.size() / 2);
}

/// A stripe of each target.
uint64_t ahead_bytes(const LoadSpread& spread) {
  uint64_t row = 0;
  for (const auto& [path, layout] : spread.layouts) {
    for (const StripedExtent& extent : layout.extents) {
      row = std::max(row, std::min(extent.stripe_bytes, kMostAhead) * extent.targets.size());
    }
  }
  return std::min(row, kMostAhead);
}

}  // namespace

LoadSpread find_spread(std::span<const RankFiles> ranks, const LoadOptions& options, std::string& said) {
  std::vector<std::string> paths;
  for (const RankFiles& rank : ranks) {
    for (const auto& part : rank.parts) paths.push_back(fs::absolute(part->path()).native());
  }
  FoundLayouts found = options.find_layouts ? options.find_layouts(paths) : find_stripe_layouts(paths);
  said = describe(found);
  return {std::move(found.layouts), options.in_flight};
}

uint64_t tail_staging_bytes(const ManifestRank& rank) {
  uint64_t bytes = 0;
  for (const ManifestPart& part : rank.parts) bytes += tail_bytes(part);
  return bytes;
}

uint64_t padding_bytes(const ManifestRank& rank) { return rank.parts.size() * kDataBegin; }

std::vector<LoadJob> plan_load_jobs(std::span<const RankFiles> ranks, uint64_t request_bytes, bool with_padding,
                                    const LoadSpread& spread) {
  using Kind = LoadJob::Kind;
  std::vector<LoadJob> jobs, paddings;
  std::vector<std::vector<LoadJob>> bodies(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) {
    const std::vector<ManifestPart>& parts = ranks[r].manifest->parts;
    uint64_t tail_at = ranks[r].tails_begin;
    for (size_t p = 0; p < parts.size(); ++p) {
      const ManifestPart& part = parts[p];
      const uint64_t end = body_end(part);
      if (has_tail(part)) jobs.push_back({r, p, end, part.data_bytes, Kind::tail, tail_at});
      tail_at += tail_bytes(part);
      for (uint64_t at = 0; at < end; at += request_bytes) {
        const uint64_t to = ranks[r].region_begin[p] + at;
        bodies[r].push_back({r, p, at, std::min(at + request_bytes, end), Kind::body, to});
      }
      if (with_padding && part.header_bytes < kDataBegin)
        paddings.push_back({r, p, part.header_bytes, kDataBegin, Kind::padding, p * kDataBegin + part.header_bytes});
    }
  }
  std::vector<std::vector<int>> targets(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) {
    for (const LoadJob& job : bodies[r]) targets[r].push_back(target_of(job, ranks[r], spread));
  }
  const size_t ahead = static_cast<size_t>(ahead_bytes(spread) / request_bytes);
  for (const TurnOf& turn : spread_over_targets(targets, ahead, static_cast<size_t>(spread.in_flight))) {
    jobs.push_back(std::move(bodies[turn.rank][turn.request]));
  }
  std::move(paddings.begin(), paddings.end(), std::back_inserter(jobs));
  return jobs;
}

std::vector<uint64_t> leaves_to_check(const LoadJob& job, Verify verify) {
  std::vector<uint64_t> leaves;
  if (verify == Verify::off) return leaves;
  const bool all = verify == Verify::full || job.kind == LoadJob::Kind::tail;
  for (uint64_t leaf = job.begin / kLeafBytes; leaf * kLeafBytes < job.end; ++leaf) {
    if (all || leaf % kSampledLeaf == 0) leaves.push_back(leaf);
  }
  return leaves;
}

std::string describe(Verify verify, uint64_t n_checked, uint64_t n_leaves) {
  if (verify == Verify::sample) return str("sample: every ", kSampledLeaf, "th leaf, ", n_checked, " of ", n_leaves);
  return verify == Verify::full ? "full" : "off";
}

void place_tail(const LoadJob& job, const RankFiles& files, Device device, std::byte* arena) {
  const ManifestPart& part = files.manifest->parts[job.part];
  const std::byte* const read = arena + job.at;
  copy(arena + files.region_begin[job.part] + job.begin, device, read, device, part.tail_begin - job.begin);
  for (const ArenaTensor& tensor : files.layout.tensors) {
    if (tensor.part != job.part || !tensor.in_tail) continue;
    copy(arena + tensor.at, device, read + (tensor.begin - job.begin), device, tensor.end - tensor.begin);
  }
}

void check_padding(const LoadJob& job, const File& file, const std::byte* data) {
  const std::span<const std::byte> bytes(data, job.size());
  const auto wrong = std::find_if(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{' '}; });
  if (wrong == bytes.end()) return;
  const uint64_t at = job.begin + static_cast<uint64_t>(wrong - bytes.begin());
  throw Error(ErrorKind::damaged, str(range_text(file.path(), at, at + 1), ": the header's padding has byte ",
                                      static_cast<int>(*wrong), ", expected a space (32)"));
}

}  // namespace firstlight
