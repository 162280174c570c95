// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/mount.h"

#include <sys/vfs.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>

namespace firstlight {

namespace {

/// mountinfo writes space, tab, newline and backslash as \040 …
std::string unescaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool lies_below(std::string_view path, std::string_view point) {
  if (point == "/") return path.starts_with("/");
  return path.starts_with(point) && (path.size() == point.size() || path[point.size()] == '/');
}

}  // namespace

Mount find_mount(std::string_view table, std::string_view path) {
  Mount best;
  std::istringstream lines{std::string(table)};
  for (std::string line; std::getline(lines, line);) {
    // "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw": optional fields end at " - ".
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash)), after(line.substr(dash + 3));
    std::string id, parent, device, root, point, type, source;
    if (!(before >> id >> parent >> device >> root >> point) || !(after >> type >> source)) continue;
    point = unescaped(point);
    if (!lies_below(path, point) || point.size() < best.point.size()) continue;
    best = {point, unescaped(type), unescaped(source)};
  }
  return best;
}

bool is_network(const Mount& mount) {
  constexpr std::string_view kTypes[] = {"lustre", "nfs",    "nfs4", "ceph", "gpfs",
                                         "beegfs", "wekafs", "cifs", "smb3", "9p"};
  return mount.type.starts_with("fuse.") ||
         std::find(std::begin(kTypes), std::end(kTypes), mount.type) != std::end(kTypes);
}

Mount mount_of(const fs::path& path) {
  std::error_code failed;
  const fs::path at = fs::weakly_canonical(fs::absolute(path, failed), failed);
  std::ifstream file("/proc/self/mountinfo");
  std::ostringstream table;
  table << file.rdbuf();
  return find_mount(table.str(), at.native());
}

namespace {

bool has_magic(const fs::path& path, uint32_t magic) noexcept {
  struct statfs about {};
  return ::statfs(path.c_str(), &about) == 0 && static_cast<uint32_t>(about.f_type) == magic;
}

}  // namespace

bool lies_on_nfs(const fs::path& path) noexcept { return has_magic(path, 0x6969); }
bool lies_on_lustre(const fs::path& path) noexcept { return has_magic(path, 0x0BD00BD0); }

}  // namespace firstlight
