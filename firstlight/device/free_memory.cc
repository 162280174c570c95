// SPDX-License-Identifier: Apache-2.0
// How much memory is left: the machine's MemAvailable, bounded by every cgroup (v2 or v1) above this process and by its
// own limit on address space.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/gpu_memory.h"

namespace firstlight {

namespace {

std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // absent, or the word "max"
}

/// The value of "key   123" or "key:   123 kB" in a file of such lines.
std::optional<uint64_t> field_in(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    uint64_t value = 0;
    if (word == key && file >> value) return value;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

/// What one group's limit leaves. Page cache that the kernel drops under pressure counts as free, as in MemAvailable.
std::optional<uint64_t> left_in(const std::string& limit_file, const std::string& usage_file,
                                const std::string& stat_file, const char* cache_key) {
  const auto limit = number_in(limit_file);
  const auto usage = number_in(usage_file);
  if (!limit || !usage) return std::nullopt;
  const uint64_t cache = field_in(stat_file, cache_key).value_or(0);
  const uint64_t used = *usage > cache ? *usage - cache : 0;
  return *limit > used ? *limit - used : 0;
}

/// The smallest bound of `directory` and the groups above it up to `root`.
void bound_by_groups(std::string directory, const std::string& root, const std::string& limit, const std::string& usage,
                     const char* cache_key, uint64_t& free) {
  while (directory.size() >= root.size()) {
    const std::string at = directory + "/";
    if (const auto left = left_in(at + limit, at + usage, at + "memory.stat", cache_key)) free = std::min(free, *left);
    const size_t slash = directory.rfind('/');
    if (slash == std::string::npos) break;
    directory.resize(slash);
  }
}

/// What `ulimit -v` leaves: mapped bytes count, touched or not.
void bound_by_address_space(uint64_t& free) {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  const auto pages = number_in("/proc/self/statm");  // the first number: all that is mapped
  const uint64_t mapped = pages.value_or(0) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  free = std::min<uint64_t>(free, limit.rlim_cur > mapped ? limit.rlim_cur - mapped : 0);
}

}  // namespace

uint64_t free_memory(Device device) {
  if (device.kind == Device::Kind::cuda) return gpu::free_memory(device);
  uint64_t free = std::numeric_limits<uint64_t>::max();
  if (const auto kib = field_in("/proc/meminfo", "MemAvailable:")) free = *kib * 1024;
  bound_by_address_space(free);
  std::ifstream groups("/proc/self/cgroup");  // "0::/a/b" (v2), "9:memory:/a/b" (v1)
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) {
      const std::string root = "/sys/fs/cgroup";
      bound_by_groups(root + path, root, "memory.max", "memory.current", "inactive_file", free);
    } else if (controllers.find("memory") != std::string::npos) {
      const std::string root = "/sys/fs/cgroup/memory";
      bound_by_groups(root + path, root, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", free);
    }
  }
  return free;
}

// 2 threads beside SmolLM2's load mapped 171 MB (64 MiB a heap, 8 MiB a stack, and buffers).
uint64_t mapped_by_threads(Device device, int n_threads) {
  struct rlimit limit {};
  if (device.kind == Device::Kind::cuda || ::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return 0;
  return (uint64_t{64} << 20) + static_cast<uint64_t>(n_threads) * (uint64_t{72} << 20);
}

}  // namespace firstlight
