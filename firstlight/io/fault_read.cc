// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/fault_read.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "firstlight/base/str.h"

namespace firstlight {

namespace {

std::string path_of(int fd) {
  std::array<char, 4096> text{};
  const ssize_t n = ::readlink(str("/proc/self/fd/", fd).c_str(), text.data(), text.size());
  return n > 0 ? std::string(text.data(), static_cast<size_t>(n)) : std::string();
}

}  // namespace

FaultyRead::FaultyRead(std::vector<Fault> faults, std::shared_ptr<RawRead> below) : below_(std::move(below)) {
  for (Fault& fault : faults) faults_.push_back({std::move(fault), 0});
}

std::vector<Fault> FaultyRead::strike(int fd) {
  const std::string path = path_of(fd);
  std::vector<Fault> hits;
  const std::lock_guard lock(mutex_);
  ++n_calls_;
  for (Armed& armed : faults_) {
    if (!path.ends_with(armed.fault.file)) continue;
    const uint64_t call = armed.seen++;
    if (call >= armed.fault.first_call && call - armed.fault.first_call < armed.fault.n_calls)
      hits.push_back(armed.fault);
  }
  return hits;
}

ssize_t FaultyRead::pread(int fd, void* into, size_t size, off_t offset) {
  const std::vector<Fault> hits = strike(fd);
  const auto at = static_cast<uint64_t>(offset);
  for (const Fault& fault : hits) {
    switch (fault.kind) {
      case Fault::Kind::short_read:
        size = std::min<size_t>(size, std::max<uint64_t>(1, fault.amount));
        break;
      case Fault::Kind::error:
        errno = static_cast<int>(fault.amount);
        return -1;
      case Fault::Kind::stall: {
        std::unique_lock lock(mutex_);
        ++n_stalled_;
        released_changed_.wait(lock, [&] { return released_; });
        --n_stalled_;
        break;
      }
      case Fault::Kind::end_of_file:
        if (at >= fault.amount) return 0;
        size = std::min<size_t>(size, fault.amount - at);
        break;
      case Fault::Kind::flip:
        break;
    }
  }
  const ssize_t got = below_->pread(fd, into, size, offset);
  for (const Fault& fault : hits) {
    if (fault.kind != Fault::Kind::flip || got <= 0) continue;
    if (fault.amount < at || fault.amount - at >= static_cast<uint64_t>(got)) continue;
    static_cast<std::byte*>(into)[fault.amount - at] ^= std::byte{1};
  }
  return got;
}

void FaultyRead::release() {
  {
    const std::lock_guard lock(mutex_);
    released_ = true;
  }
  released_changed_.notify_all();
}

uint64_t FaultyRead::n_calls() const {
  const std::lock_guard lock(mutex_);
  return n_calls_;
}

uint64_t FaultyRead::n_stalled() const {
  const std::lock_guard lock(mutex_);
  return n_stalled_;
}

std::unique_ptr<Reader> make_faulty_reader(std::shared_ptr<FaultyRead> faulty, int n_threads) {
  return std::make_unique<PreadReader>(n_threads, std::move(faulty), "faulty", "faults are injected");
}

}  // namespace firstlight
