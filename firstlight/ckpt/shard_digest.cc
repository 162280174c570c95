// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/shard_digest.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/shard_read.h"
#include "firstlight/device/buffer.h"

namespace firstlight {

namespace {

constexpr uint64_t kPieceBytes = 8u << 20;  // one O_DIRECT request at a time a thread: it must be a large one

}  // namespace

PartDigest digest_file(const File& file, std::span<std::byte> buffer, const std::stop_token& stop,
                       std::atomic<uint64_t>& bytes_read) {
  PartDigest digest;
  digest.size = file.size();
  Xxh3_128 hash;
  DirectReader direct;
  const uint64_t step = (buffer.size() - DirectReader::kSlackBytes) / kLeafBytes * kLeafBytes;
  for (uint64_t offset = 0; offset < file.size(); offset += step) {
    if (stop.stop_requested()) throw Interrupted();
    Bytes piece = buffer.first(std::min<uint64_t>(step, file.size() - offset));
    if (const std::byte* read = direct.try_read(file, offset, piece.size(), buffer)) {
      piece = {read, piece.size()};
    } else {
      file.read(offset, buffer.first(piece.size()));
    }
    for (uint64_t at = 0; at < piece.size(); at += kLeafBytes) {
      const Bytes leaf = piece.subspan(at, std::min<uint64_t>(kLeafBytes, piece.size() - at));
      hash.update(leaf);
      if (offset + at >= kDataBegin) digest.leaves.push_back(xxh3_64(leaf));
    }
    bytes_read += piece.size();
  }
  file.check_unchanged();
  digest.xxh3_128 = hash.hex();
  return digest;
}

void for_each_file(size_t n, int n_threads, const std::function<void(size_t i, std::span<std::byte> buffer)>& fn,
                   const std::function<void()>& tick) {
  const auto wanted = static_cast<size_t>(n_threads > 0 ? n_threads : usable_cores());
  const size_t n_workers = std::min(wanted, n);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable changed;
  size_t running = n_workers;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      const Buffer buffer(Device{}, kPieceBytes + DirectReader::kSlackBytes);
      for (size_t i = next++; i < n; i = next++) fn(i, buffer.bytes());
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = n;
    }
    const std::lock_guard lock(mutex);
    --running;
    changed.notify_one();
  };
  std::vector<std::jthread> threads;
  try {
    for (size_t i = 0; i < n_workers; ++i) threads.push_back(start_thread<std::jthread>("hashing", work));
  } catch (const Error&) {
    if (threads.empty()) throw;  // fewer than wanted will do
  }
  std::unique_lock lock(mutex);
  running -= n_workers - threads.size();
  while (running > 0) {
    changed.wait_for(lock, std::chrono::milliseconds(100));
    lock.unlock();
    if (tick) tick();
    lock.lock();
  }
  lock.unlock();
  threads.clear();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace firstlight
