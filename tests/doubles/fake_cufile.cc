// SPDX-License-Identifier: Apache-2.0
// A double of libcufile for machines without GPUs: the functions that the loader calls, over ordinary memory, strict
// about order, descriptors and ranges, and with faults on demand.
#include "tests/doubles/fake_cufile.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

namespace {

using firstlight::FakeCufile;

struct Status {
  int code = 0, cuda_code = 0;
};
struct FileDescription {
  int type;
  union {
    int fd;
    void* handle;
  } file;
  const void* operations;
};

std::mutex mutex;
int n_open = 0;
bool compatibility_allowed = true, is_direct = false, counts = false;
std::map<const char*, uint64_t> buffers;  // registered: base → size
std::map<void*, int> files;               // registered: handle → descriptor
char handles[1024];                       // their addresses are handles
int n_handles = 0;

}  // namespace

extern "C" {

extern FakeCufile firstlight_fake_cufile;
FakeCufile firstlight_fake_cufile;

static void violation() { ++firstlight_fake_cufile.n_violations; }

Status cuFileSetParameterBool(int parameter, bool value) {
  const std::lock_guard lock(mutex);
  if (parameter == 1) compatibility_allowed = value;
  return {};
}

Status cuFileDriverOpen() {
  const std::lock_guard lock(mutex);
  if (!firstlight_fake_cufile.has_nvfs && !compatibility_allowed) return {5001, 0};
  ++n_open;
  is_direct = firstlight_fake_cufile.has_nvfs;
  return {};
}

Status cuFileDriverClose_v2() {
  const std::lock_guard lock(mutex);
  if (n_open == 0 || !files.empty() || !buffers.empty()) return violation(), Status{5006, 0};
  --n_open;
  return {};
}

Status cuFileHandleRegister(void** handle, FileDescription* file) {
  const std::lock_guard lock(mutex);
  const int flags = fcntl(file->file.fd, F_GETFL);
  if (n_open == 0 || file->type != 1 || flags < 0) return violation(), Status{5022, 0};
  if (is_direct && (flags & O_DIRECT) == 0) return {5020, 0};
  *handle = &handles[n_handles++ % sizeof(handles)];
  files[*handle] = file->file.fd;
  firstlight_fake_cufile.n_files = static_cast<int>(files.size());
  return {};
}

void cuFileHandleDeregister(void* handle) {
  const std::lock_guard lock(mutex);
  const auto found = files.find(handle);
  if (found == files.end() || fcntl(found->second, F_GETFD) < 0) return violation();  // closed before it was forgotten
  files.erase(found);
  firstlight_fake_cufile.n_files = static_cast<int>(files.size());
}

Status cuFileBufRegister(const void* base, size_t size, int flags) {
  const std::lock_guard lock(mutex);
  if (n_open == 0 || flags != 0 || base == nullptr || size == 0) return violation(), Status{5022, 0};
  if (size > firstlight_fake_cufile.most_pinned) return {5016, 0};
  if (!buffers.emplace(static_cast<const char*>(base), size).second) return violation(), Status{5023, 0};
  firstlight_fake_cufile.n_buffers = static_cast<int>(buffers.size());
  return {};
}

Status cuFileBufDeregister(const void* base) {
  const std::lock_guard lock(mutex);
  if (buffers.erase(static_cast<const char*>(base)) == 0) return violation(), Status{5024, 0};
  firstlight_fake_cufile.n_buffers = static_cast<int>(buffers.size());
  return {};
}

ssize_t cuFileRead(void* handle, void* base, size_t size, off_t file_offset, off_t into_offset) {
  FakeCufile& fake = firstlight_fake_cufile;
  const int64_t call = fake.n_reads++;
  for (bool stalled = false; fake.stall; stalled = true) {
    if (!stalled) ++fake.n_stalled;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  int fd = -1;
  {
    const std::lock_guard lock(mutex);
    const auto found = files.find(handle);
    if (n_open == 0 || found == files.end()) return violation(), -5027;
    fd = found->second;
    const auto buffer = buffers.find(static_cast<const char*>(base));
    if (buffer == buffers.end() ? into_offset != 0 : static_cast<uint64_t>(into_offset) + size > buffer->second)
      return violation(), -5014;
    if (buffer != buffers.end()) ++fake.n_registered_reads;
  }
  if (call == fake.fail_call && fake.fail_code != 0) return -fake.fail_code;
  if (call == fake.fail_call) return errno = fake.fail_errno, -1;
  char* to = static_cast<char*>(base) + into_offset;
  const auto* memory = static_cast<const char*>(fake.memory);
  if (memory != nullptr && (to < memory || to + size > memory + fake.memory_size)) return -5012;
  // Past the page cache only what is aligned; the library has bounce buffers for the rest, this has a second look.
  const size_t wanted = std::min<uint64_t>(size, fake.most_at_once);
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  const int buffered = open(path, O_RDONLY | O_CLOEXEC);
  if (buffered < 0) return -1;
  const ssize_t n = pread(buffered, to, wanted, file_offset);
  close(buffered);
  if (n > 0) fake.bytes += static_cast<uint64_t>(n);
  return n;
}

Status cuFileGetVersion(int* version) {
  *version = 1150;
  return {};
}

Status cuFileSetStatsLevel(int level) {
  counts = level == 3;
  return {};
}

Status cuFileStatsStart() { return {}; }

Status cuFileGetStatsL3(void* stats) {
  const FakeCufile& fake = firstlight_fake_cufile;
  if (!counts) return {5022, 0};
  char* at = static_cast<char*>(stats) + fake.stats_uuid_at;
  std::memcpy(at, fake.uuid, sizeof(fake.uuid));
  const auto n = static_cast<uint64_t>(fake.n_reads);
  const uint64_t words[8] = {fake.bytes, 0, 0, 0, n, 0, is_direct ? n : 0, is_direct || fake.miscounts ? 0 : n};
  std::memcpy(at + sizeof(fake.uuid), words, sizeof(words));
  return {};
}

}  // extern "C"

namespace {

void reset() {
  const std::lock_guard lock(mutex);
  n_open = 0;
  is_direct = counts = false;
  compatibility_allowed = true;
  buffers.clear();
  files.clear();
  FakeCufile& fake = firstlight_fake_cufile;
  fake.has_nvfs = true;
  fake.most_pinned = fake.memory_size = fake.most_at_once = UINT64_MAX;
  fake.stats_uuid_at = 1000;
  fake.miscounts = false;
  fake.memory = nullptr;
  fake.fail_call = -1;
  fake.fail_errno = fake.fail_code = 0;
  fake.stall = false;
  fake.n_reads = fake.n_registered_reads = fake.n_stalled = 0;
  fake.n_files = fake.n_buffers = fake.n_violations = 0;
  fake.bytes = 0;
}

[[maybe_unused]] const bool ready = [] {
  firstlight_fake_cufile.reset = reset;
  return true;
}();

}  // namespace
