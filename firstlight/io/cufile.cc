// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/cufile.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

// As cufile.h of CUDA 12.0 to 13.1 has them: the interface's numbers and layouts do not change.
struct Status {
  int code = 0;       // 0, or 5001 …
  int cuda_code = 0;  // of CUDA's driver, where that failed
};
struct FileDescription {
  int type = 1;  // a file descriptor
  union {
    int fd;
    void* handle;
  } file{};
  const void* operations = nullptr;
};
constexpr int kAllowCompatibility = 1;  // CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE
constexpr int kCudaFailed = 5011;
/// The statistics grow from version to version, inside too: 5,600 bytes in CUDA 13.1.
constexpr size_t kStatsBytes = 16384;

/// What the codes mean that a user can do something about.
std::string words(int code, int cuda_code) {
  constexpr std::pair<int, const char*> kKnown[] = {
      {5001, "the driver nvidia-fs is not loaded"},
      {5004, "the driver nvidia-fs has another version than the library"},
      {5005, "the version of the driver nvidia-fs cannot be read"},
      {5007, "the platform has no GPUDirect Storage"},
      {5008, "the file system has no GPUDirect Storage"},
      {5009, "the GPU has no GPUDirect Storage"},
      {5012, "the address is not device memory"},
      {5014, "the range passes the end of the device memory"},
      {5016, "more memory than may be pinned (max_device_pinned_mem_size_kb)"},
      {5018, "not a regular file or block device"},
      {5020, "the file is not open with O_DIRECT"},
      {5022, "invalid arguments"},
      {5025, "permission denied"},
      {5027,
       "the library does not know the file's device: it looks it up in /run/udev, which a container must be given"},
      {5034, "GPUDirect Storage is switched off for this file by the library's configuration"},
      {5036, "GPU memory could not be pinned"},
  };
  const auto known = std::find_if(std::begin(kKnown), std::end(kKnown), [&](const auto& k) { return k.first == code; });
  std::string text = str("cuFile error ", code);
  if (known != std::end(kKnown)) text = str(known->second, " (", text, ")");
  if (code == kCudaFailed) text += str(", CUDA error ", cuda_code);
  return text;
}

}  // namespace

struct Cufile::Functions {
  Status (*driver_open)() = nullptr;
  Status (*driver_close)() = nullptr;  // without it the library crashes at the process's end
  Status (*handle_register)(void** handle, FileDescription* file) = nullptr;
  void (*handle_deregister)(void* handle) = nullptr;
  Status (*buffer_register)(const void* base, size_t size, int flags) = nullptr;
  Status (*buffer_deregister)(const void* base) = nullptr;
  ssize_t (*read)(void* handle, void* base, size_t size, off_t file_offset, off_t into_offset) = nullptr;
  // Younger than the rest; may be missing:
  Status (*set_bool)(int parameter, bool value) = nullptr;  // CUDA 12.6
  Status (*get_version)(int* version) = nullptr;
  Status (*set_stats_level)(int level) = nullptr;  // CUDA 13.0
  Status (*stats_start)() = nullptr;
  Status (*get_stats)(void* stats) = nullptr;

  template <class Function>
  static bool find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
  }
  /// The name of the first that is missing and must not be, or null.
  const char* find_all(void* library) {
    find(library, "cuFileSetParameterBool", set_bool);
    find(library, "cuFileGetVersion", get_version);
    find(library, "cuFileSetStatsLevel", set_stats_level);
    find(library, "cuFileStatsStart", stats_start);
    find(library, "cuFileGetStatsL3", get_stats);
    if (!find(library, "cuFileDriverClose_v2", driver_close)) find(library, "cuFileDriverClose", driver_close);
    if (!find(library, "cuFileDriverOpen", driver_open)) return "cuFileDriverOpen";
    if (!find(library, "cuFileHandleRegister", handle_register)) return "cuFileHandleRegister";
    if (!find(library, "cuFileHandleDeregister", handle_deregister)) return "cuFileHandleDeregister";
    if (!find(library, "cuFileBufRegister", buffer_register)) return "cuFileBufRegister";
    if (!find(library, "cuFileBufDeregister", buffer_deregister)) return "cuFileBufDeregister";
    return find(library, "cuFileRead", read) ? nullptr : "cuFileRead";
  }
};

Cufile::Cufile() : f_(std::make_unique<Functions>()) {}
Cufile::~Cufile() {
  if (is_open_ && f_->driver_close != nullptr) f_->driver_close();
}

std::shared_ptr<Cufile> Cufile::open(bool allow_compatibility, const char* library_name) {
  void* library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(ErrorKind::unsupported, str("libcufile: ", dlerror()));
  std::shared_ptr<Cufile> cufile(new Cufile);
  Functions& f = *cufile->f_;
  if (const char* missing = f.find_all(library)) {
    throw Error(ErrorKind::unsupported, str("libcufile: has no ", missing));
  }
  if (f.set_stats_level != nullptr) f.set_stats_level(3);
  const auto open = [&](bool compatibility) {
    if (f.set_bool != nullptr) f.set_bool(kAllowCompatibility, compatibility);
    return f.driver_open();
  };
  Status status = open(false);
  if (status.code != 0) {
    cufile->why_compatibility_ = words(status.code, status.cuda_code);
    if (!allow_compatibility) {
      throw Error(ErrorKind::unsupported, str("libcufile: no direct reads: ", cufile->why_compatibility_));
    }
    status = open(true);
    if (status.code != 0) {
      throw Error(ErrorKind::unsupported, str("libcufile: no driver: ", words(status.code, status.cuda_code)));
    }
  } else if (f.set_bool == nullptr) {
    cufile->why_compatibility_ = "this version of the library cannot be told to refuse compatibility mode";
  }
  cufile->is_open_ = true;
  if (f.stats_start != nullptr) f.stats_start();
  return cufile;
}

std::string Cufile::version() const {
  int version = 0;
  if (f_->get_version == nullptr || f_->get_version(&version).code != 0) return "";
  return str(version / 1000, ".", version % 1000 / 10);
}

Cufile::Handle Cufile::remember(int fd) {
  FileDescription file;
  file.file.fd = fd;
  Handle handle = nullptr;
  const Status status = f_->handle_register(&handle, &file);
  if (status.code != 0)
    throw Error(ErrorKind::unsupported, str("cuFileHandleRegister: ", words(status.code, status.cuda_code)));
  return handle;
}

void Cufile::forget(Handle handle) noexcept { f_->handle_deregister(handle); }

std::string Cufile::register_memory(const std::byte* begin, uint64_t size) {
  const Status status = f_->buffer_register(begin, size, 0);
  return status.code == 0 ? "" : words(status.code, status.cuda_code);
}

void Cufile::unregister_memory(const std::byte* begin) noexcept { f_->buffer_deregister(begin); }

ssize_t Cufile::read(Handle handle, std::byte* base, size_t size, off_t file_offset, off_t into_offset) {
  return f_->read(handle, base, size, file_offset, into_offset);
}

std::string Cufile::words_for(ssize_t code) { return words(static_cast<int>(-code), 0); }

std::optional<CufileReads> Cufile::reads_of(const GpuUuid& gpu) const {
  if (f_->get_stats == nullptr) return std::nullopt;
  std::vector<std::byte> stats(kStatsBytes);
  if (f_->get_stats(stats.data()).code != 0) return std::nullopt;
  return find_cufile_reads(stats.data(), stats.size(), gpu);
}

std::optional<CufileReads> find_cufile_reads(const std::byte* stats, size_t size, const GpuUuid& gpu) {
  // Behind the UUID: bytes, bytes per second, per cent, µs, reads, of these p2p, nvfs and posix.
  constexpr size_t kWords = 8;
  for (size_t at = 0; at + gpu.size() + kWords * sizeof(uint64_t) <= size; at += sizeof(uint64_t)) {
    if (std::memcmp(stats + at, gpu.data(), gpu.size()) != 0) continue;
    std::array<uint64_t, kWords> words{};
    std::memcpy(words.data(), stats + at + gpu.size(), sizeof(words));
    const CufileReads reads{words[0], words[4], words[5], words[6], words[7]};
    if (reads.n_p2p + reads.n_nvfs + reads.n_posix == reads.n_reads) return reads;
  }
  return std::nullopt;
}

}  // namespace firstlight
