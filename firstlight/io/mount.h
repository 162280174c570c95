// SPDX-License-Identifier: Apache-2.0
// Which file system a path lies on.
#pragma once
#include <string>
#include <string_view>

#include "firstlight/io/file.h"

namespace firstlight {

/// As in /proc/self/mountinfo; empty where that has no answer.
struct Mount {
  std::string point;   ///< "/"
  std::string type;    ///< "ext4", "lustre", "fuse.glusterfs"
  std::string source;  ///< "/dev/nvme0n1p1", "10.0.0.1@tcp:/fsx"
};

/// Whether its bytes come over a network, where a read takes milliseconds and many must be under way.
bool is_network(const Mount& mount);

inline bool is_nfs(const Mount& mount) { return mount.type == "nfs" || mount.type == "nfs4"; }

/// Of `path` (or its nearest existing parent). Never throws for a path that is not there.
Mount mount_of(const fs::path& path);

/// The mount of `table` (lines of mountinfo) that holds the absolute path; the last one mounted wins.
Mount find_mount(std::string_view table, std::string_view path);

/// The same by one system call, for the path of a start: the table of mounts takes 55 us to read, and longer in a host
/// of many containers. False for what is not there.
bool lies_on_nfs(const fs::path& path) noexcept;
bool lies_on_lustre(const fs::path& path) noexcept;

}  // namespace firstlight
