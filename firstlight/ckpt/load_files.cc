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

void read_all(Reader& reader, std::vector<SmallRead>& reads, const LoadOptions& options) {
  std::vector<ReadRequest> requests;
  for (SmallRead& read : reads) {
    requests.push_back(
        {requests.size(), read.file, read.offset, read.into.size(), reinterpret_cast<std::byte*>(read.into.data())});
    read.result = -EINPROGRESS;
  }
  reader.submit(requests, [&reads](const ReadCompletion& done) { reads[done.id].result = done.result; });
  reader.wait();
  if (options.stop.stop_requested()) throw Interrupted();
  for (const SmallRead& read : reads) {
    if (read.result == static_cast<int64_t>(read.into.size())) continue;
    std::rethrow_exception(read_failure(read.result,
                                        range_text(read.file->path(), read.offset, read.offset + read.into.size()),
                                        read.file->size(), options.deadline_s));
  }
}

void check_hash(const SmallRead& read, const std::string& expected) {
  const std::string found = xxh3_128_hex(std::as_bytes(std::span(read.into)));
  if (found == expected) return;
  throw Error(ErrorKind::damaged, str(range_text(read.file->path(), read.offset, read.offset + read.into.size()),
                                      ": XXH3-128 is ", found, ", the manifest says ", expected));
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
                                  const LoadOptions& options, Reader& reader, std::vector<SmallRead>& reads) {
  const ManifestTp& tp = stored_tp(manifest, config, out, options.tp);
  check_tensor_list(config, manifest);
  // Behind NFS read-ahead fetches twice what threads of 4 MiB reads fetch anyway.
  const bool exact_reads = lies_on_nfs(out);
  std::vector<RankFiles> ranks;
  for (size_t i = 0; i < n_loaded_ranks(options); ++i) {
    RankFiles files;
    files.rank = loaded_rank(options, i);
    const ManifestRank& rank = tp.ranks[static_cast<size_t>(files.rank)];
    files.manifest = &rank;
    for (const ManifestPart& part : rank.parts) {
      files.parts.push_back(open_listed(out, manifest, part.file));
      if (exact_reads) files.parts.back()->turn_off_read_ahead();
      reads.push_back({files.parts.back(), 0, std::string(part.header_bytes, '\0'), 0});
    }
    if (options.verify != Verify::off) {
      files.leaves_file = open_listed(out, manifest, rank.directory + "/leaves.xxh3");
      reads.push_back({files.leaves_file, 0, std::string(files.leaves_file->size(), '\0'), 0});
    }
    ranks.push_back(std::move(files));
  }
  read_all(reader, reads, options);

  size_t next = 0;
  for (RankFiles& files : ranks) {
    const ManifestRank& rank = *files.manifest;
    std::vector<SafetensorsHeader> headers;
    for (const ManifestPart& part : rank.parts) {
      headers.push_back(parse_part_header(reads[next].into, part, reads[next].file->path()));
      ++next;
    }
    files.layout = lay_out_arena(config, manifest, rank, options.tp, files.rank, headers);
    if (options.verify != Verify::off) {
      const SmallRead& leaves = reads[next++];
      check_hash(leaves, manifest.files.at(rank.directory + "/leaves.xxh3").xxh3_128);
      files.leaves.resize(leaves.into.size() / sizeof(uint64_t));  // as many as the manifest's sizes demand
      std::memcpy(files.leaves.data(), leaves.into.data(), leaves.into.size());
    }
  }
  return ranks;
}

}  // namespace firstlight
