// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/read_bench.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/io/direct_file.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/residency.h"
#include "firstlight/io/uring_reader.h"

namespace firstlight::cli {

namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kPage = 4096;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

uint64_t bytes_of(std::span<const std::shared_ptr<const File>> files, uint64_t most) {
  uint64_t total = 0;
  for (const auto& file : files) total += file->size() / kPage * kPage;
  return std::min(total, most / kPage * kPage);
}

std::unique_ptr<Reader> reader_for(ReaderKind kind, const ReadPattern& pattern) {
  if (kind == ReaderKind::pread) return std::make_unique<PreadReader>(pattern.threads);
  UringOptions options;
  options.n_threads = pattern.threads;
  options.depth = std::max(1, pattern.in_flight / pattern.threads);
  return make_uring_reader(options);
}

/// 0 or errno.
int read_whole(int fd, std::byte* into, uint64_t size, uint64_t offset) {
  while (size > 0) {
    const ssize_t n = ::pread(fd, into, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : ENODATA;
    into += n, offset += static_cast<uint64_t>(n), size -= static_cast<uint64_t>(n);
  }
  return 0;
}

}  // namespace

ReadBench::ReadBench(std::vector<std::shared_ptr<const File>> files, uint64_t most_bytes)
    : files_(std::move(files)), into_({}, bytes_of(files_, most_bytes)) {
  if (into_.size() == 0) throw Error(ErrorKind::bad_input, "there is not a page to read");
  std::memset(into_.data(), 0, into_.size());
}

std::vector<ReadBench::Piece> ReadBench::cut(uint64_t piece, uint64_t bytes) const {
  std::vector<Piece> pieces;
  uint64_t at = 0;
  for (size_t f = 0; f < files_.size() && at < bytes; ++f) {
    const uint64_t end = std::min(files_[f]->size() / kPage * kPage, bytes - at);
    for (uint64_t offset = 0; offset < end; offset += piece) {
      const uint64_t size = std::min(piece, end - offset);
      pieces.push_back({f, offset, size, at});
      at += size;
    }
  }
  return pieces;
}

bool ReadBench::make_cold() const {
  for (const auto& file : files_) {
    ::fdatasync(file->fd());  // pages that are not written yet would stay
    posix_fadvise(file->fd(), 0, 0, POSIX_FADV_DONTNEED);
  }
  const auto left = sample_residency(files_);
  return left && left->cached < 0.02;
}

void ReadBench::make_warm() { by_reader(ReaderKind::pread, {}, bytes()); }

void ReadBench::stir_memory() const {
  const Buffer memory({}, into_.size());
  std::memset(memory.data(), 0, memory.size());
}

double ReadBench::by_reader(ReaderKind kind, const ReadPattern& pattern, uint64_t bytes) {
  const std::vector<Piece> pieces = cut(pattern.piece, bytes);
  std::vector<ReadRequest> requests;
  for (const Piece& piece : pieces) {
    requests.push_back({requests.size(), files_[piece.file], piece.offset, piece.size, into_.data() + piece.at});
  }
  std::atomic<int64_t> failure = 0;
  const auto begin = Clock::now();
  {
    const std::unique_ptr<Reader> reader = reader_for(kind, pattern);
    reader->submit(requests, [&](const ReadCompletion& done) {
      if (done.result < 0) failure = -done.result;
    });
    reader->wait();
  }
  const double seconds = seconds_since(begin);
  if (failure != 0) throw_errno(static_cast<int>(failure.load()), "read", files_[0]->path());
  return seconds;
}

double ReadBench::by_system_calls(bool direct, bool fresh, const ReadPattern& pattern) {
  const std::vector<Piece> pieces = cut(pattern.piece, bytes());
  std::vector<std::unique_ptr<DirectFile>> open;
  for (const auto& file : files_) {
    open.push_back(std::make_unique<DirectFile>(file));
    if (direct && !open.back()->why_not().empty()) throw Error(ErrorKind::unsupported, open.back()->why_not());
  }
  std::atomic<size_t> next = 0;
  std::atomic<int> failure = 0;
  const auto begin = Clock::now();
  const Buffer memory({}, fresh ? into_.size() : 0);
  std::byte* into = fresh ? memory.data() : into_.data();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < (direct ? pattern.in_flight : pattern.threads); ++i) {
      threads.push_back(start_thread<std::jthread>("reading", [&] {
        for (size_t p; (p = next++) < pieces.size();) {
          const Piece& piece = pieces[p];
          const int fd = open[piece.file]->fd(direct);
          if (const int error = read_whole(fd, into + piece.at, piece.size, piece.offset)) failure = error;
        }
      }));
    }
  }
  const double seconds = seconds_since(begin);
  if (failure != 0) throw_errno(failure, "read", files_[0]->path());
  return seconds;
}

}  // namespace firstlight::cli
