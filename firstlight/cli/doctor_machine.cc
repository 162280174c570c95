// SPDX-License-Identifier: Apache-2.0
// The doctor's look at the machine as a whole.
#include <dlfcn.h>
#include <link.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <set>

#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/cli/doctor.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/ring.h"

namespace firstlight::cli {

namespace {

using State = Finding::State;
constexpr const char* kSection = "machine";

std::string bytes_text(uint64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

/// The rest of the line that starts with `key`, without blanks at its ends.
std::string field(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t", key.size());
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

uint64_t number(const std::string& text) {
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// "6.5" ≤ "6.18.44".
bool at_least(const std::string& release, uint64_t major, uint64_t minor) {
  const size_t dot = release.find('.');
  const uint64_t has_major = number(release),
                 has_minor = dot == std::string::npos ? 0 : number(release.substr(dot + 1));
  return has_major != major ? has_major > major : has_minor >= minor;
}

Finding check_kernel(const MachineFacts& facts) {
  std::string missing, advice;
  if (!at_least(facts.kernel, 6, 5)) missing = "cachestat(2), from 6.5";
  if (!at_least(facts.kernel, 6, 1)) missing += "; the alignment of direct reads by statx(2), from 6.1";
  if (!at_least(facts.kernel, 5, 6)) {
    missing += "; io_uring's reads, from 5.6";
    advice = "a newer kernel: reads past the page cache need 5.6";
  }
  return {advice.empty() ? State::good : State::warning, kSection, "kernel",
          facts.kernel + (missing.empty() ? "" : " (without " + missing + ")"), advice};
}

Finding check_container(const MachineFacts& facts) {
  std::string kind;
  if (fs::exists(facts.root / ".dockerenv")) kind = "Docker";
  if (fs::exists(facts.root / "run/.containerenv")) kind = "Podman";
  const std::string groups = field(facts.root / "proc/1/cgroup", "0::");
  if (groups.find("kubepods") != std::string::npos) kind = "Kubernetes";
  return {State::info, kSection, "container", kind.empty() ? "none found" : kind, ""};
}

Finding check_cores(const MachineFacts& facts) {
  std::ifstream cpuinfo(facts.root / "proc/cpuinfo");
  int n = 0;
  for (std::string line; std::getline(cpuinfo, line);) n += line.starts_with("processor");
  const bool limited = n > facts.usable_cores;
  return {limited ? State::warning : State::good, kSection, "cores",
          str(facts.usable_cores, " usable of ", std::max(n, facts.usable_cores)),
          limited ? "an affinity mask or the cgroup's cpu.max holds the others back; reading from the page cache takes "
                    "about one core for 6 GB/s"
                  : ""};
}

Finding check_memory(const MachineFacts& facts) {
  const uint64_t total = 1024 * number(field(facts.root / "proc/meminfo", "MemTotal:"));
  const uint64_t available = 1024 * number(field(facts.root / "proc/meminfo", "MemAvailable:"));
  const bool limited = facts.free_memory + (available / 20) < available;
  return {limited ? State::warning : State::good, kSection, "memory",
          str(bytes_text(facts.free_memory), " free for this process, of ", bytes_text(total)),
          limited ? str("the cgroup leaves less than the machine has (", bytes_text(available),
                        "): page cache counts against it, too; raise memory.max or the container's limit")
                  : ""};
}

/// 64 MiB a GPU is what a ring takes.
Finding check_memlock(const MachineFacts& facts) {
  constexpr uint64_t kWanted = 256u << 20;
  constexpr int kIpcLock = 14;  // CAP_IPC_LOCK
  uint64_t capabilities = 0;
  const std::string text = field(facts.root / "proc/self/status", "CapEff:");
  std::from_chars(text.data(), text.data() + text.size(), capabilities, 16);
  const bool exempt = (capabilities >> kIpcLock & 1) != 0;
  const std::string limit = facts.memlock == UINT64_MAX ? "unlimited" : bytes_text(facts.memlock);
  if (exempt || facts.memlock >= kWanted) {
    return {State::good, kSection, "memory locks",
            limit + (exempt && facts.memlock < kWanted ? ", not for this process (CAP_IPC_LOCK)" : ""), ""};
  }
  return {State::warning, kSection, "memory locks", limit,
          "the ring in front of a GPU cannot be registered with io_uring: ulimit -l unlimited (docker run --ulimit "
          "memlock=-1; systemd: LimitMEMLOCK=infinity)"};
}

Finding check_huge_pages(const MachineFacts& facts) {
  const std::string all = first_line(facts.root / "sys/kernel/mm/transparent_hugepage/enabled");
  const size_t open = all.find('['), close = all.find(']');
  const std::string chosen =
      open < close && close != std::string::npos ? all.substr(open + 1, close - open - 1) : std::string();
  if (chosen == "always" || chosen == "madvise") return {State::good, kSection, "huge pages", chosen, ""};
  return {State::warning, kSection, "huge pages", chosen.empty() ? "not in this kernel" : chosen,
          "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: weights are touched three times as fast"};
}

Finding check_numa(const MachineFacts& facts) {
  std::string nodes = first_line(facts.root / "sys/devices/system/node/online");
  if (nodes.empty()) nodes = "0";
  return {State::info, kSection, "NUMA nodes", nodes, ""};
}

Finding check_last_level_cache(const MachineFacts& facts) {
  std::set<std::string> seen;  // one cache for all the cores that share it
  uint64_t kib = 0;
  std::error_code failed;
  for (const auto& cpu : fs::directory_iterator(facts.root / "sys/devices/system/cpu", failed)) {
    const fs::path cache = cpu.path() / "cache/index3";
    const std::string shared = first_line(cache / "shared_cpu_list");
    if (!shared.empty() && seen.insert(shared).second) kib += number(first_line(cache / "size"));
  }
  if (kib == 0) return {State::info, kSection, "last-level cache", "not told", ""};
  return {State::info, kSection, "last-level cache", str(kib / 1024, " MiB in ", seen.size(), " part(s)"), ""};
}

Finding check_io_uring(const MachineFacts& facts) {
  if (facts.why_no_io_uring.empty()) return {State::good, kSection, "io_uring", "a read through it worked", ""};
  const bool seccomp = facts.why_no_io_uring.find("seccomp") != std::string::npos;
  return {State::warning, kSection, "io_uring", facts.why_no_io_uring,
          str(seccomp ? "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
                      : "sysctl kernel.io_uring_disabled=0, or a kernel from 5.6",
              "; without it pread reads cold files past the page cache, with a thread for each read under way")};
}

/// The path that the loader finds a library at, or "".
std::string find_library(const char* name) {
  void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);  // never closed: GPU libraries do not take that well
  if (library == nullptr) return "";
  link_map* map = nullptr;
  return dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && map->l_name[0] != 0 ? map->l_name : name;
}

}  // namespace

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find_first_not_of(" \t"), end = line.find_last_not_of(" \t\r");
  return begin == std::string::npos ? "" : line.substr(begin, end - begin + 1);
}

MachineFacts this_machine() {
  MachineFacts facts;
  utsname system{};
  uname(&system);
  facts.kernel = system.release;
  facts.usable_cores = usable_cores();
  facts.free_memory = free_memory({});
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  facts.memlock = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
  facts.why_no_io_uring = why_no_io_uring();
  facts.cufile = find_library("libcufile.so.0");
  facts.gpus = gpus();
  return facts;
}

Findings check_machine(const MachineFacts& facts) {
  return {check_kernel(facts), check_container(facts),        check_cores(facts),
          check_memory(facts), check_memlock(facts),          check_huge_pages(facts),
          check_numa(facts),   check_last_level_cache(facts), check_io_uring(facts)};
}

}  // namespace firstlight::cli
