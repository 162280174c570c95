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

void use(SmallRead& read) noexcept {
  try {
    read.use({read.into.get(), read.size});
  } catch (...) {
    read.failure = std::current_exception();
  }
}

void read_all(Reader& reader, std::vector<SmallRead>& reads, const LoadOptions& options) {
  std::vector<ReadRequest> requests;
  for (SmallRead& read : reads) {
    read.into = std::make_unique_for_overwrite<char[]>(read.size);
    read.result = -EINPROGRESS;
    requests.push_back({requests.size(), read.file, 0, read.size, reinterpret_cast<std::byte*>(read.into.get())});
  }
  reader.submit(requests, [&reads](const ReadCompletion& done) {
    SmallRead& read = reads[done.id];
    read.result = done.result;
    if (done.result == static_cast<int64_t>(read.size)) use(read);
  });
  reader.wait();
  if (options.stop.stop_requested()) throw Interrupted();
  for (const SmallRead& read : reads) {
    if (read.failure) std::rethrow_exception(read.failure);
    if (read.result == static_cast<int64_t>(read.size)) continue;
    const std::string what = range_text(read.file->path(), 0, read.size);
    std::rethrow_exception(read_failure(read.result, what, read.file->size(), options.deadline_s));
  }
}

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
                                  const LoadOptions& options, Reader& reader, std::vector<SmallRead>& reads) {
  const ManifestTp& tp = stored_tp(manifest, config, out, options.tp);
  check_tensor_list(config, manifest);
  // Behind NFS read-ahead fetches twice what threads of 4 MiB reads fetch anyway.
  const bool exact_reads = lies_on_nfs(out);
  std::vector<RankFiles> ranks(n_loaded_ranks(options));
  std::vector<std::vector<SafetensorsHeader>> headers(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    RankFiles& files = ranks[i];
    files.rank = loaded_rank(options, i);
    const ManifestRank& rank = tp.ranks[static_cast<size_t>(files.rank)];
    files.manifest = &rank;
    headers[i].resize(rank.parts.size());
    for (size_t k = 0; k < rank.parts.size(); ++k) {
      const ManifestPart& part = rank.parts[k];
      const auto file = files.parts.emplace_back(open_listed(out, manifest, part.file));
      if (exact_reads) file->turn_off_read_ahead();
      reads.push_back({file, part.header_bytes});
      reads.back().use = [&part, &header = headers[i][k], &path = file->path()](std::string_view bytes) {
        header = parse_part_header(bytes, part, path);
      };
    }
    if (options.verify == Verify::off) continue;
    const std::string name = rank.directory + "/leaves.xxh3";
    files.leaves_file = open_listed(out, manifest, name);
    reads.push_back({files.leaves_file, files.leaves_file->size()});
    reads.back().use = [&files, &listed = manifest.files.at(name)](std::string_view bytes) {
      check_hash(bytes, files.leaves_file->path(), listed.xxh3_128);
      files.leaves.resize(bytes.size() / sizeof(uint64_t));  // as many as the manifest's sizes demand
      std::memcpy(files.leaves.data(), bytes.data(), bytes.size());
    };
  }
  read_all(reader, reads, options);
  for (size_t i = 0; i < ranks.size(); ++i) {
    ranks[i].layout = lay_out_arena(config, manifest, *ranks[i].manifest, options.tp, ranks[i].rank, headers[i]);
  }
  return ranks;
}

}  // namespace firstlight
