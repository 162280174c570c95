// SPDX-License-Identifier: Apache-2.0
// What this machine can do for a start, what it can't, and what to do about it. The checks read /proc and /sys below a
// root of their own, so that a test can show them another machine.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/device/gpus.h"
#include "firstlight/io/file.h"
#include "firstlight/io/mount.h"

namespace firstlight::cli {

struct Finding {
  enum class State { good, info, warning };
  State state = State::info;
  std::string section;  ///< "machine", "GPU 0000:18:00.0", "GPUDirect Storage", "storage DIR"
  std::string name;     ///< "huge pages"
  std::string value;    ///< what was found
  std::string advice;   ///< what to do about it; "" if nothing is to be done
};
using Findings = std::vector<Finding>;

/// What system calls, and not files, say of a machine.
struct MachineFacts {
  fs::path root = "/";  ///< of /proc, /sys, /run
  std::string kernel;   ///< release: "6.1.0-18-amd64"
  int usable_cores = 1;
  uint64_t free_memory = 0;
  uint64_t memlock = 0;  ///< soft limit, bytes; UINT64_MAX: none
  std::string why_no_io_uring;
  std::string cufile;  ///< where libcufile was found; "": nowhere
  Gpus gpus;
};

/// Asks the driver, tries io_uring, and looks for libcufile.
MachineFacts this_machine();

/// Kernel, container, cores, memory and its locks, huge pages, NUMA nodes, last-level cache, io_uring.
Findings check_machine(const MachineFacts& facts);
/// The driver, each NVIDIA GPU's PCI link and NUMA node, what CUDA offers to this process, and whether bytes can go
/// from storage to GPUs without the CPU (GPUDirect Storage by nvidia-fs, or by PCI peer-to-peer).
Findings check_gpus(const MachineFacts& facts);
/// The file system of a directory: kind, direct reads, page cache, readers' remembered speeds, and for Lustre and NFS
/// what they are tuned by. Throws Error{not_found} if there is no `directory`.
Findings check_storage(const MachineFacts& facts, const fs::path& directory);
/// Of a directory on Lustre: the client, the striping that the program `lfs` tells, and in which order a load would
/// read `file`.
Findings check_lustre(const MachineFacts& facts, const fs::path& directory, const std::string& lfs = "lfs",
                      const std::optional<fs::path>& file = std::nullopt);

/// First line of a file, without blanks at its ends; "" if it cannot be read.
std::string first_line(const fs::path& path);
/// Lines for people, a section at a time.
std::string describe(const Findings& findings);

}  // namespace firstlight::cli
