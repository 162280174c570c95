// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/load_leaf.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iomanip>
#include <optional>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"

namespace firstlight {

namespace {

std::string hex(uint64_t hash) {
  std::ostringstream out;
  out << std::hex << std::setfill('0') << std::setw(16) << hash;
  return std::move(out).str();
}

/// Fills `into` from `offset`; false if that failed or the file ends before.
bool read_exactly(int fd, std::byte* into, uint64_t size, uint64_t at_least, uint64_t offset) {
  uint64_t done = 0;
  while (done < at_least) {
    const ssize_t n = ::pread(fd, into + done, size - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<uint64_t>(n);
  }
  return true;
}

struct SecondRead {
  uint64_t hash = 0;
  bool direct = false;
};

/// O_DIRECT where the file system takes it, else after asking the kernel to drop the cached pages.
std::optional<SecondRead> read_again(const File& file, uint64_t offset, uint64_t size) {
  const uint64_t padded =
      (size + kPageBytes - 1) / kPageBytes * kPageBytes;  // O_DIRECT: whole pages, cut at the end of the file
  const Buffer buffer({}, padded);
  // The open file itself, whatever its path names by now.
  const int direct = ::open(str("/proc/self/fd/", file.fd()).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  bool ok = direct >= 0 && read_exactly(direct, buffer.data(), padded, size, offset);
  if (direct >= 0) ::close(direct);
  const bool was_direct = ok;
  if (!ok) {
    posix_fadvise(file.fd(), static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
    ok = read_exactly(file.fd(), buffer.data(), size, size, offset);
  }
  if (!ok) return std::nullopt;
  return SecondRead{xxh3_64({buffer.data(), size}), was_direct};
}

}  // namespace

std::string tensors_in(const ArenaLayout& layout, size_t part, uint64_t begin, uint64_t end) {
  std::string names;
  int n = 0;
  for (const ArenaTensor& tensor : layout.tensors) {
    if (tensor.part != part || tensor.end <= begin || tensor.begin >= end) continue;
    if (++n <= 4) names += str(n == 1 ? "" : ", ", tensor.name);
  }
  if (n > 4) names += str(" and ", n - 4, " more");
  return names;
}

std::exception_ptr job_failure(const LoadJob& job, const RankFiles& files, int64_t result, double deadline_s) {
  const File& file = *files.parts[job.part];
  const std::string range = range_text(file.path(), job.file_begin(), job.file_begin() + job.size());
  const std::string what = job.kind == LoadJob::Kind::padding ? "the header's padding"
                                                              : tensors_in(files.layout, job.part, job.begin, job.end);
  return read_failure(result, str(range, " (", what, ")"), file.size(), deadline_s);
}

std::exception_ptr leaf_failure(const RankFiles& files, size_t part, uint64_t leaf, uint64_t found) {
  const ManifestPart& manifest = files.manifest->parts[part];
  const File& file = *files.parts[part];
  const uint64_t begin = leaf * kLeafBytes;
  const uint64_t end = std::min(begin + kLeafBytes, manifest.data_bytes);
  const uint64_t expected = files.expected_leaf(part, leaf);
  std::string verdict;
  try {
    const auto again = read_again(file, kDataBegin + begin, end - begin);
    const char* how = again && again->direct ? "a second read, from the storage itself, " : "a second read ";
    if (!again) {
      verdict = "a second read failed";
    } else if (again->hash == expected) {
      verdict =
          str(how, "gave the right bytes: the storage is sound, the page cache, the transport or the memory is not");
    } else if (again->hash == found) {
      verdict = str(how, "gave the same wrong bytes: the file is damaged");
    } else {
      verdict =
          str(how, "gave yet other wrong bytes (", hex(again->hash), "): the storage or the transport is unsound");
    }
  } catch (const Error& error) {
    verdict = str("no second read: ", error.what());
  }
  return std::make_exception_ptr(
      Error(ErrorKind::damaged, str(range_text(file.path(), kDataBegin + begin, kDataBegin + end), " (",
                                    tensors_in(files.layout, part, begin, end), "): XXH3-64 is ", hex(found), ", '",
                                    files.manifest->directory, "/leaves.xxh3' says ", hex(expected), "; ", verdict)));
}

}  // namespace firstlight
