// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/prefix_write.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/staging.h"
#include "firstlight/kv/prefix_file.h"

namespace firstlight {

namespace {

constexpr uint64_t kWriteBytes = 8u << 20;  // of one write, about
static_assert(kPrefixAlignment == OutputFile::kAlignment);

uint64_t round_up(uint64_t n) { return (n + kPrefixAlignment - 1) / kPrefixAlignment * kPrefixAlignment; }

/// Pages that stand one after another in the file and are written at once.
struct Run {
  size_t rank = 0;
  bool exact = false;
  int64_t first = 0, n = 0;  // of the rank's section
};

/// All runs but a section's last have so many pages: what follows begins at a multiple of kPrefixAlignment, too.
int64_t pages_of_run(uint64_t page_bytes) {
  const uint64_t step = kPrefixAlignment / std::gcd(page_bytes, kPrefixAlignment);
  return static_cast<int64_t>(step * std::max<uint64_t>(1, kWriteBytes / (page_bytes * step)));
}

/// Threads that each take a run, copy its pages into a slot of their own, hash and write them.
class PageWriter {
 public:
  PageWriter(OutputFile& out, PrefixHead& head, std::span<const RankPages> ranks, const PageTable& table)
      : out_(out), head_(head), ranks_(ranks), table_(table), threads_(n_threads(), /*spin=*/0) {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      add_section(rank, /*exact=*/false, head.info.n_pages());
      add_section(rank, /*exact=*/true, head.info.n_exact());
    }
    for (const RankPages& rank : ranks) {
      const bool has_ring =
          std::any_of(rings_.begin(), rings_.end(), [&](const Ring& ring) { return ring.device == rank.device; });
      if (!has_ring) add_ring(rank.device);
    }
  }

  void write_all(const std::stop_token& stop) {
    threads_.run([&](int thread) {
      try {
        for (size_t i = 0; !has_failed_ && (i = next_++) < runs_.size();) {
          if (stop.stop_requested()) throw Interrupted();
          write(runs_[i], thread);
        }
      } catch (...) {
        has_failed_ = true;
        throw;
      }
    });
  }

 private:
  struct Ring {
    Device device;
    std::unique_ptr<Staging> staging;  // a slot for each thread
  };

  /// One hashes while the other writes: files in memory are written to by one at a time. (One H200, 4.3 GB to /dev/shm:
  /// two threads 4.7 and 4.9 GB/s, three 4.9; with the reservation of its room in the time two 3.3, four 2.8, eight
  /// 2.6.)
  static int n_threads() { return std::min(usable_cores(), 2); }

  void add_section(size_t rank, bool exact, int64_t n_pages) {
    if (n_pages == 0) return;
    const int64_t most = pages_of_run(page_bytes(rank, exact));
    for (int64_t first = 0; first < n_pages; first += most) {
      runs_.push_back({rank, exact, first, std::min(most, n_pages - first)});
      slot_bytes_ = std::max(slot_bytes_, round_up(bytes_of(runs_.back())));
    }
  }

  void add_ring(Device device) {
    Ring& ring = rings_.emplace_back(Ring{device, make_staging(device, {threads_.n_threads(), slot_bytes_})});
    for (int i = 0; i < threads_.n_threads(); ++i) ring.staging->prepare(i);
  }

  uint64_t page_bytes(size_t rank, bool exact) const {
    return exact ? ranks_[rank].exact_page_bytes : ranks_[rank].page_bytes;
  }
  uint64_t bytes_of(const Run& run) const { return static_cast<uint64_t>(run.n) * page_bytes(run.rank, run.exact); }

  const std::byte* page_at(const Run& run, int64_t i) const {
    const RankPages& rank = ranks_[run.rank];
    return run.exact ? exact_of(rank, table_, head_.info.exact_page(i)) : page_of(rank, table_, i);
  }

  std::span<uint64_t> hashes_of(const Run& run) {
    const auto n_pages = static_cast<size_t>(head_.info.n_pages()), n_exact = static_cast<size_t>(head_.info.n_exact());
    const size_t section = run.exact ? ranks_.size() * n_pages + run.rank * n_exact : run.rank * n_pages;
    return std::span(head_.hashes).subspan(section + static_cast<size_t>(run.first), static_cast<size_t>(run.n));
  }

  void write(const Run& run, int thread) {
    const Device device = ranks_[run.rank].device;
    Staging& staging =
        *std::find_if(rings_.begin(), rings_.end(), [&](const Ring& ring) { return ring.device == device; })->staging;
    const uint64_t page = page_bytes(run.rank, run.exact), size = bytes_of(run);
    std::byte* const slot = staging.slot(thread);
    for (int64_t i = 0; i < run.n; ++i) {
      staging.fetch(thread, static_cast<uint64_t>(i) * page, page_at(run, run.first + i), page);
    }
    while (!staging.finished(thread)) std::this_thread::yield();
    const std::byte* at = slot;
    for (uint64_t& hash : hashes_of(run)) hash = xxh3_64({std::exchange(at, at + page), page});
    std::memset(slot + size, 0, round_up(size) - size);
    const int rank = static_cast<int>(run.rank);
    const uint64_t offset = run.exact ? head_.exact_at(rank, run.first) : head_.page_at(rank, run.first);
    out_.write(offset, {slot, round_up(size)});
  }

  OutputFile& out_;
  PrefixHead& head_;
  std::span<const RankPages> ranks_;
  const PageTable& table_;
  ThreadPool threads_;
  std::vector<Run> runs_;
  uint64_t slot_bytes_ = 0;
  std::vector<Ring> rings_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> has_failed_{false};
};

/// The hashes are known last.
void write_head(OutputFile& out, const PrefixHead& head) {
  const std::vector<std::byte> bytes = to_bytes(head);
  const Buffer aligned({}, round_up(bytes.size()));
  std::memcpy(aligned.data(), bytes.data(), bytes.size());
  out.write(0, aligned.bytes());
}

void remove_partial(const fs::path& path) {
  std::error_code none;
  fs::remove(path.native() + ".partial", none);
}

}  // namespace

void require_prefix_place(const fs::path& path) {
  std::error_code none;
  if (path.has_parent_path() && !fs::is_directory(path.parent_path(), none))
    throw_errno(ENOENT, "create", path.native());
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

PrefixWriter::PrefixWriter(const fs::path& path, PrefixInfo info) : path_(path), head_{std::move(info), {}} {
  require_prefix_place(path);
  const PrefixInfo& of = head_.info;
  head_.hashes.resize(static_cast<size_t>(of.tp) * static_cast<size_t>(of.n_pages() + of.n_exact()));
  to_bytes(head_);  // refuses what no file can have before one is made
  try {
    out_.emplace(path, head_.file_bytes(), no_hook_);
  } catch (...) {
    remove_partial(path_);
    throw;
  }
}

PrefixWriter::~PrefixWriter() {
  out_.reset();
  remove_partial(path_);  // of one that is whole there is none
}

uint64_t PrefixWriter::write(std::span<const RankPages> ranks, const PageTable& table, const std::stop_token& stop) {
  require_fits(head_.info, ranks, table);
  PageWriter(*out_, head_, ranks, table).write_all(stop);
  write_head(*out_, head_);
  out_->finish();
  return head_.file_bytes();
}

uint64_t write_prefix(const fs::path& path, const PrefixInfo& info, std::span<const RankPages> ranks,
                      const PageTable& table, const std::stop_token& stop) {
  require_fits(info, ranks, table);
  return PrefixWriter(path, info).write(ranks, table, stop);
}

}  // namespace firstlight
