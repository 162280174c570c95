// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/load_files.h"

#include <cerrno>
#include <cstring>
#include <system_error>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/load_lane.h"
#include "firstlight/io/mount.h"

namespace firstlight {

namespace {

std::string leaves_name(const ManifestRank& rank) { return rank.directory + "/leaves.xxh3"; }

void check_hash(std::string_view bytes, const std::string& path, const std::string& expected) {
  const std::string found = xxh3_128_hex(std::as_bytes(std::span(bytes)));
  if (found == expected) return;
  throw Error(ErrorKind::damaged,
              str(range_text(path, 0, bytes.size()), ": XXH3-128 is ", found, ", the manifest says ", expected));
}

}  // namespace

std::exception_ptr read_failure(int64_t result, const std::string& what, uint64_t file_size, double deadline_s) {
  switch (-result) {
    case ENODATA:
      return std::make_exception_ptr(Error(
          ErrorKind::damaged, str(what, ": the file ends before; it had ", file_size, " bytes when it was opened")));
    case ETIMEDOUT:
      return std::make_exception_ptr(
          Error(ErrorKind::io, str("read ", what, ": not there within the deadline of ", human_seconds(deadline_s))));
    case ECANCELED:
      return std::make_exception_ptr(Error(ErrorKind::io, str("read ", what, ": cancelled")));
    default:
      return std::make_exception_ptr(
          Error(ErrorKind::io, str("read ", what, ": ", std::generic_category().message(static_cast<int>(-result)))));
  }
}

std::vector<RankFiles> open_ranks(const fs::path& out, const Manifest& manifest, const ModelConfig& config,
                                  const LoadOptions& options) {
  const ManifestTp& tp = stored_tp(manifest, config, out, options.tp);
  check_tensor_list(config, manifest);
  // Behind NFS read-ahead fetches twice what threads of 4 MiB reads fetch anyway.
  const bool exact_reads = lies_on_nfs(out);
  std::vector<RankFiles> ranks(n_loaded_ranks(options));
  for (size_t i = 0; i < ranks.size(); ++i) {
    RankFiles& files = ranks[i];
    files.rank = loaded_rank(options, i);
    files.manifest = &tp.ranks[static_cast<size_t>(files.rank)];
    files.region_begin = region_begins(*files.manifest);
    files.tails_begin = most_arena_bytes(*files.manifest, manifest.tensors.size());
    for (const ManifestPart& part : files.manifest->parts) {
      const auto file = files.parts.emplace_back(open_listed(out, manifest, part.file));
      if (exact_reads) file->turn_off_read_ahead();
    }
    if (options.verify != Verify::off) files.leaves_file = open_listed(out, manifest, leaves_name(*files.manifest));
  }
  return ranks;
}

void HeaderReads::begin(Reader& reader, const Manifest& manifest, std::vector<RankFiles>& ranks) {
  ranks_ = &ranks;
  headers_.resize(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    RankFiles& files = ranks[i];
    const std::vector<ManifestPart>& parts = files.manifest->parts;
    headers_[i].resize(parts.size());
    for (size_t k = 0; k < parts.size(); ++k) {
      reads_.push_back({files.parts[k], parts[k].header_bytes});
      reads_.back().use = [&part = parts[k], &header = headers_[i][k], &path = files.parts[k]->path()](
                              std::string_view bytes) { header = parse_part_header(bytes, part, path); };
    }
    if (!files.leaves_file) continue;
    reads_.push_back({files.leaves_file, files.leaves_file->size()});
    reads_.back().use = [&files, &listed = manifest.files.at(leaves_name(*files.manifest))](std::string_view bytes) {
      check_hash(bytes, files.leaves_file->path(), listed.xxh3_128);
      files.leaves.resize(bytes.size() / sizeof(uint64_t));  // as many as the manifest's sizes demand
      std::memcpy(files.leaves.data(), bytes.data(), bytes.size());
    };
  }
  std::vector<ReadRequest> requests;
  for (Small& read : reads_) {
    read.into = std::make_unique_for_overwrite<char[]>(read.size);
    requests.push_back({requests.size(), read.file, 0, read.size, reinterpret_cast<std::byte*>(read.into.get())});
  }
  left_.emplace(static_cast<ptrdiff_t>(reads_.size()));
  reader.submit(requests, [this](const ReadCompletion& ended) { done(reads_[ended.id], ended.result); });
}

void HeaderReads::done(Small& read, int64_t result) noexcept {
  read.result = result;
  try {
    if (result == static_cast<int64_t>(read.size)) read.use({read.into.get(), read.size});
  } catch (...) {
    read.failure = std::current_exception();
  }
  left_->count_down();
}

void HeaderReads::finish(const Manifest& manifest, const ModelConfig& config, const LoadOptions& options) {
  left_->wait();
  if (options.stop.stop_requested()) throw Interrupted();
  for (const Small& read : reads_) {
    if (read.failure) std::rethrow_exception(read.failure);
    if (read.result == static_cast<int64_t>(read.size)) continue;
    const std::string what = range_text(read.file->path(), 0, read.size);
    std::rethrow_exception(read_failure(read.result, what, read.file->size(), options.deadline_s));
  }
  reads_.clear();
  for (size_t i = 0; i < ranks_->size(); ++i) {
    RankFiles& files = (*ranks_)[i];
    files.layout = lay_out_arena(config, manifest, *files.manifest, options.tp, files.rank, headers_[i]);
  }
}

}  // namespace firstlight
