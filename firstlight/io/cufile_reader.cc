// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/cufile_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <future>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/io/descriptor.h"
#include "firstlight/io/pread_reader.h"

namespace firstlight {

/// One cuFileRead in place of one pread(2), so that the queue is PreadReader's.
class CufileReader::Read final : public RawRead {
 public:
  explicit Read(CufileOptions options)
      : options_(std::move(options)), opened_(start_future("libcufile", options_.open).share()) {}

  ~Read() override {
    for (auto& [key, file] : files_) cufile_->forget(file.handle);
    for (const std::span<std::byte> memory : registered_) cufile_->unregister_memory(memory.data());
  }

  Cufile& wait_until_ready() {
    std::shared_ptr<Cufile> opened = opened_.get();
    const std::lock_guard lock(mutex_);
    if (!cufile_) cufile_ = std::move(opened);
    return *cufile_;
  }

  ssize_t pread(int fd, void* into, size_t size, off_t offset) override {
    try {
      Cufile& cufile = wait_until_ready();
      enter();
      const Cufile::Handle handle = handle_of(cufile, fd);
      auto* to = static_cast<std::byte*>(into);
      std::byte* const base = base_of(to);
      const ssize_t n = cufile.read(handle, base, size, offset, to - base);
      if (n >= -1) return n;
      throw Error(ErrorKind::device, str("cuFileRead of ", size, " bytes at ", offset, ": ", Cufile::words_for(n)));
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
    errno = EREMOTEIO;
    return -1;
  }

  void use_memory(std::span<const std::span<std::byte>> slots) {
    Cufile& cufile = wait_until_ready();
    if (!cufile.why_compatibility().empty()) return;  // nothing would be mapped
    if (options_.enter_thread) options_.enter_thread();
    for (const std::span<std::byte> slot : slots) {
      const std::string why_not = cufile.register_memory(slot.data(), slot.size());
      const std::lock_guard lock(mutex_);
      if (why_not.empty()) {
        registered_.push_back(slot);
      } else if (why_unregistered_.empty()) {
        why_unregistered_ = why_not;
      }
    }
  }

  std::string why() {
    if (opened_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return "libcufile is being opened";
    const std::lock_guard lock(mutex_);
    if (!cufile_) return "libcufile was not used";
    const std::string version = cufile_->version();
    std::string text =
        str(options_.why, options_.why.empty() ? "" : "; ", "libcufile", version.empty() ? "" : " ", version);
    text += cufile_->why_compatibility().empty() ? "" : str(" in compatibility mode: ", cufile_->why_compatibility());
    if (const auto reads = cufile_->reads_of(options_.gpu())) {
      text += str("; it counts ", reads->n_reads, " reads: ", reads->n_nvfs, " by nvidia-fs, ", reads->n_p2p,
                  " peer-to-peer, ", reads->n_posix, " through host memory");
    } else {
      text += "; it does not count which way its reads went";
    }
    if (!why_unregistered_.empty()) text += str("; memory not registered: ", why_unregistered_);
    if (!why_buffered_.empty()) text += str("; not all files past the page cache: ", why_buffered_);
    return text;
  }

  std::exception_ptr failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  struct RegisteredFile {
    explicit RegisteredFile(int own) : fd(own) {}
    Descriptor fd;
    Cufile::Handle handle = nullptr;
  };
  using FileKey = std::pair<dev_t, ino_t>;

  void enter() {
    thread_local const Read* entered = nullptr;
    if (entered == this || !options_.enter_thread) return;
    options_.enter_thread();
    entered = this;
  }

  /// The open file once more, past the page cache if that can be: the library wants that for direct reads.
  int open_again(int fd) {
    const std::string path = str("/proc/self/fd/", fd);
    int own = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (own >= 0) return own;
    {
      const std::lock_guard lock(mutex_);
      why_buffered_ = std::generic_category().message(errno);
    }
    own = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (own < 0) throw_errno(errno, "open", path);
    return own;
  }

  /// The library's handle of an open file, made at its first read.
  Cufile::Handle handle_of(Cufile& cufile, int fd) {
    struct stat about {};
    if (fstat(fd, &about) != 0) throw_errno(errno, "fstat", str("descriptor ", fd));
    const FileKey key{about.st_dev, about.st_ino};
    const std::lock_guard lock(files_mutex_);
    if (const auto known = files_.find(key); known != files_.end()) return known->second.handle;
    const auto added = files_.try_emplace(key, open_again(fd)).first;
    try {
      added->second.handle = cufile.remember(added->second.fd.get());
    } catch (...) {
      files_.erase(added);
      throw;
    }
    return added->second.handle;
  }

  /// Beginning of the registered memory around `at`, or `at`.
  std::byte* base_of(std::byte* at) const {
    const std::lock_guard lock(mutex_);
    for (const std::span<std::byte> memory : registered_) {
      if (at >= memory.data() && at < memory.data() + memory.size()) return memory.data();
    }
    return at;
  }

  const CufileOptions options_;
  std::shared_future<std::shared_ptr<Cufile>> opened_;
  mutable std::mutex mutex_;
  std::shared_ptr<Cufile> cufile_;
  std::vector<std::span<std::byte>> registered_;
  std::string why_unregistered_, why_buffered_;
  std::exception_ptr failure_;
  std::mutex files_mutex_;
  std::map<FileKey, RegisteredFile> files_;
};

CufileReader::CufileReader(CufileOptions options, std::unique_ptr<Reader> host)
    : read_(std::make_shared<Read>(options)),
      queue_(std::make_unique<PreadReader>(options.n_threads, read_, "cufile", "")),
      host_(std::move(host)) {}

CufileReader::~CufileReader() {
  cancel();
  host_.reset();
  queue_.reset();  // before what its threads use
}

void CufileReader::submit(std::span<const ReadRequest> requests, const ReadCallback& done) {
  {
    const std::lock_guard lock(mutex_);
    if (holding_) {
      held_.push_back({{requests.begin(), requests.end()}, done});
      return;
    }
  }
  submit_placed({requests.begin(), requests.end()}, done);
}

void CufileReader::submit_placed(std::vector<ReadRequest> requests, const ReadCallback& done) {
  for (ReadRequest& request : requests) {
    if (request.into == nullptr && address_) request.into = address_(request.id);
  }
  queue_->submit(requests, done);
}

void CufileReader::hold() {
  const std::lock_guard lock(mutex_);
  holding_ = true;
}

std::vector<CufileReader::Held> CufileReader::take_held(bool end_hold) {
  const std::lock_guard lock(mutex_);
  if (end_hold) holding_ = false;
  return std::exchange(held_, {});
}

void CufileReader::release(Address address) {
  address_ = std::move(address);
  for (Held& held : take_held(/*end_hold=*/true)) submit_placed(std::move(held.requests), held.done);
}

void CufileReader::set_deadline(Clock::time_point deadline) {
  queue_->set_deadline(deadline);
  if (host_) host_->set_deadline(deadline);
}

void CufileReader::cancel() {
  queue_->cancel();
  if (host_) host_->cancel();
  for (const Held& held : take_held(/*end_hold=*/false)) {
    for (const ReadRequest& request : held.requests) held.done({request.id, -ECANCELED});
  }
}

void CufileReader::wait() { queue_->wait(); }
void CufileReader::use_memory(std::span<const std::span<std::byte>> slots) { read_->use_memory(slots); }
std::string_view CufileReader::name() const { return queue_->name(); }
std::string CufileReader::why() const { return read_->why(); }
void CufileReader::wait_until_ready() { read_->wait_until_ready(); }
std::exception_ptr CufileReader::failure() const { return read_->failure(); }

}  // namespace firstlight
