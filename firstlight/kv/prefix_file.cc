// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/prefix_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/io/mount.h"
#include "firstlight/io/output_file.h"

namespace firstlight {

std::byte* page_of(const RankPages& rank, const PageTable& table, int64_t page) {
  return rank.pages + static_cast<uint64_t>(table.pages()[static_cast<size_t>(page)]) * rank.page_bytes;
}

std::byte* exact_of(const RankPages& rank, const PageTable& table, int64_t page) {
  return rank.exact + static_cast<uint64_t>(table.exact()[static_cast<size_t>(page)]) * rank.exact_page_bytes;
}

void require_fits(const PrefixInfo& info, std::span<const RankPages> ranks, const PageTable& table) {
  const bool has_ranks =
      static_cast<int>(ranks.size()) == info.tp && std::all_of(ranks.begin(), ranks.end(), [&](const RankPages& rank) {
        return rank.page_bytes == info.page_bytes() &&
               (info.n_exact() == 0 || rank.exact_page_bytes == info.exact_page_bytes());
      });
  bool has_pages = static_cast<int64_t>(table.pages().size()) >= info.n_pages();
  for (int64_t i = 0; has_pages && i < info.n_exact(); ++i) {
    has_pages = table.exact().size() > static_cast<size_t>(info.exact_page(i)) &&
                table.exact()[static_cast<size_t>(info.exact_page(i))] >= 0;
  }
  if (has_ranks && has_pages) return;
  throw Error(ErrorKind::bug, str("a prefix of ", info.n_pages(), " pages of ", info.page_bytes(), " bytes on ",
                                  info.tp, " ranks, and a cache that is another"));
}

namespace {

constexpr uint64_t kWriteBytes = 8u << 20;  // of one write

/// A file that is not one of ours is not to be lost.
void require_ours(const fs::path& path) {
  std::error_code none;
  if (!fs::exists(fs::symlink_status(path, none))) return;
  const auto file = File::open(path);
  std::array<std::byte, kPrefixFixedBytes> fixed{};
  if (file->size() >= fixed.size()) file->read(0, fixed);
  try {
    prefix_head_bytes(fixed, UINT64_MAX, file->path());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::bad_input) return;  // one of ours, of another version or damaged
    throw Error(ErrorKind::bad_input,
                str("'", file->path(), "' is there and is no prefix file: it is not overwritten"));
  }
}

/// Bytes one after another, in writes that O_DIRECT takes.
class Writer {
 public:
  Writer(OutputFile& out, uint64_t offset) : out_(out), buffer_({}, kWriteBytes), offset_(offset) {}

  void append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto n = std::min<size_t>(bytes.size(), buffer_.size() - used_);
      std::memcpy(buffer_.data() + used_, bytes.data(), n);
      used_ += n;
      bytes = bytes.subspan(n);
      if (used_ == buffer_.size()) flush();
    }
  }
  /// Zeros up to the next multiple of kPrefixAlignment.
  void pad() {
    const size_t end = (used_ + kPrefixAlignment - 1) / kPrefixAlignment * kPrefixAlignment;
    std::memset(buffer_.data() + used_, 0, end - used_);
    used_ = end;
    flush();
  }

 private:
  void flush() {
    if (used_ > 0) out_.write(offset_, {buffer_.data(), used_});
    offset_ += used_;
    used_ = 0;
  }
  OutputFile& out_;
  Buffer buffer_;
  uint64_t offset_;
  size_t used_ = 0;
};

/// A page's bytes in host memory.
class HostCopy {
 public:
  std::span<const std::byte> of(Device device, const std::byte* page, uint64_t bytes) {
    if (device.kind == Device::Kind::cpu) return {page, bytes};
    if (copy_.size() < bytes) copy_ = Buffer({}, bytes);
    copy(copy_.data(), {}, page, device, bytes);
    return {copy_.data(), bytes};
  }

 private:
  Buffer copy_;
};

void write_all(OutputFile& out, PrefixHead& head, std::span<const RankPages> ranks, const PageTable& table,
               const std::stop_token& stop) {
  const PrefixInfo& info = head.info;
  Writer writer(out, head.head_bytes());
  HostCopy host;
  const auto write = [&](const RankPages& rank, const std::byte* page, uint64_t size, uint64_t& hash) {
    if (stop.stop_requested()) throw Interrupted();
    const auto bytes = host.of(rank.device, page, size);
    hash = xxh3_64(bytes);
    writer.append(bytes);
  };
  const auto n_pages = static_cast<size_t>(info.n_pages()), n_exact = static_cast<size_t>(info.n_exact());
  for (size_t r = 0; r < ranks.size(); ++r) {
    uint64_t* hashes = head.hashes.data() + r * n_pages;
    for (int64_t page = 0; page < info.n_pages(); ++page)
      write(ranks[r], page_of(ranks[r], table, page), ranks[r].page_bytes, *hashes++);
    writer.pad();
    hashes = head.hashes.data() + ranks.size() * n_pages + r * n_exact;
    for (int64_t i = 0; i < info.n_exact(); ++i)
      write(ranks[r], exact_of(ranks[r], table, info.exact_page(i)), ranks[r].exact_page_bytes, *hashes++);
    writer.pad();
  }
  Writer first(out, 0);
  first.append(to_bytes(head));
  first.pad();
}

}  // namespace

uint64_t write_prefix(const fs::path& path, const PrefixInfo& info, std::span<const RankPages> ranks,
                      const PageTable& table, const std::stop_token& stop) {
  require_fits(info, ranks, table);
  require_ours(path);
  PrefixHead head{info, {}};
  head.hashes.resize(static_cast<size_t>(info.tp) * static_cast<size_t>(info.n_pages() + info.n_exact()));
  to_bytes(head);  // an info that no file can have is refused before a file is made
  const StepHook no_hook;
  try {
    OutputFile out(path, head.file_bytes(), no_hook);
    write_all(out, head, ranks, table, stop);
    out.finish();
  } catch (...) {
    std::error_code none;
    fs::remove(path.native() + ".partial", none);
    throw;
  }
  return head.file_bytes();
}

PrefixFile::PrefixFile(const fs::path& path) : file_(File::open(path)) {
  std::vector<std::byte> head(static_cast<size_t>(std::min(kPrefixFixedBytes, file_->size())));
  file_->read(0, head);
  const uint64_t n = prefix_head_bytes(head, file_->size(), file_->path());
  head.resize(static_cast<size_t>(n));
  file_->read(0, head);
  head_ = parse_prefix_head(head, file_->size(), file_->path());
  if (lies_on_nfs(path)) file_->turn_off_read_ahead();  // it would fetch twice, as of a load's files
}

}  // namespace firstlight
