// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/residency.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace firstlight {

namespace {

constexpr uint64_t kSampleBytes = 128u << 10;
constexpr uint64_t kMostSamples = 32;

// cachestat(2), Linux 6.5: neither its number nor its structures are in Debian 12's headers.
constexpr long kCachestat = 451;
struct CachestatRange {
  uint64_t offset, length;
};
struct Cachestat {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;  // pages
};

std::optional<double> by_cachestat(const File& file, uint64_t offset, uint64_t size) {
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  CachestatRange range{offset, size};
  Cachestat found{};
  if (syscall(kCachestat, file.fd(), &range, &found, 0) != 0) return std::nullopt;
  const uint64_t pages = (offset + size - 1) / page - offset / page + 1;
  return std::min(1.0, static_cast<double>(found.cached) / static_cast<double>(pages));
}

/// mincore(2) would not do here: it says "all of it" to who does not own the file.
std::optional<double> by_reads_that_may_not_wait(const File& file, uint64_t offset, uint64_t size) {
  constexpr uint64_t kProbes = 4;
  uint64_t n_cached = 0;
  for (uint64_t i = 0; i < kProbes; ++i) {
    std::byte byte{};
    iovec into{&byte, 1};
    const auto at = static_cast<off_t>(offset + size * i / kProbes);
    const ssize_t got = preadv2(file.fd(), &into, 1, at, RWF_NOWAIT);
    if (got < 0 && errno != EAGAIN) return std::nullopt;
    n_cached += got > 0;
  }
  return static_cast<double>(n_cached) / kProbes;
}

}  // namespace

bool lies_in_memory(const File& file) {
  struct statfs about {};
  if (::fstatfs(file.fd(), &about) != 0) return false;
  const auto type = static_cast<uint32_t>(about.f_type);
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC;
}

std::optional<double> cached_share(const File& file, uint64_t offset, uint64_t size) {
  if (size == 0) return std::nullopt;
  if (const auto share = by_cachestat(file, offset, size)) return share;
  return by_reads_that_may_not_wait(file, offset, size);
}

std::optional<Residency> sample_residency(std::span<const std::shared_ptr<const File>> files) {
  uint64_t total = 0;
  for (const auto& file : files) total += file->size();
  Residency all;
  for (const auto& file : files) {
    if (file->size() == 0) continue;
    const auto wanted = static_cast<uint64_t>(static_cast<double>(kMostSamples) * static_cast<double>(file->size()) /
                                              static_cast<double>(total));
    const uint64_t n = std::clamp<uint64_t>(wanted, 1, (file->size() - 1) / kSampleBytes + 1);
    for (uint64_t i = 0; i < n; ++i) {
      // The middle of each n-th of the file.
      const uint64_t step = file->size() / n, size = std::min(kSampleBytes, step);
      const auto share = cached_share(*file, i * step + (step - size) / 2, size);
      if (!share) return std::nullopt;
      all.cached += *share;
      ++all.n_samples;
    }
  }
  if (all.n_samples == 0) return std::nullopt;
  all.cached /= all.n_samples;
  return all;
}

}  // namespace firstlight
