// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/pread_reader.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/spin.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/io/direct_file.h"
#include "firstlight/io/read_items.h"

namespace firstlight {

ssize_t RawRead::pread(int fd, void* into, size_t size, off_t offset) { return ::pread(fd, into, size, offset); }

namespace {

using Clock = Reader::Clock;

/// What a thread is busy with. Read or changed under the mutex only.
struct Slot {
  enum class State { idle, reading, delivering, abandoned };
  State state = State::idle;
  ReadItems item;  // one while reading
};

}  // namespace

// Every request is in exactly one of: queue → a slot (reading → delivering) → done; queue → dropped → done; a slot
// (reading → abandoned) → dropped → done. Each arrow is taken under the mutex, so a completion is delivered once.
struct PreadReader::Impl {
  std::shared_ptr<RawRead> raw;
  std::string name, why;
  uint64_t direct_from = kNeverDirect;

  std::mutex mutex;
  std::condition_variable work;  // for threads: queue, dropped or stopping changed
  std::condition_variable keep;  // for the keeper: dropped, deadline or stopping changed
  std::condition_variable all_done;
  ReadItems queue;
  ReadItems dropped;
  std::vector<Slot> slots;   // one a thread
  uint64_t outstanding = 0;  // submitted, callback not yet returned
  Clock::time_point deadline = Clock::time_point::max();
  bool stopping = false;
  std::atomic<bool> nothing_to_do{false};                           // a hint for those who wait awake
  std::map<const File*, std::shared_ptr<DirectFile>> direct_files;  // named since all was last done
  DirectUse direct_use;

  std::vector<std::thread> threads;
  std::thread keeper;  // from the first deadline or cancel on: speaks for threads that are stuck in the kernel

  /// Completes the one item of `item` with the mutex released.
  void deliver(std::unique_lock<std::mutex>& lock, ReadItems item, int64_t result) {
    lock.unlock();
    (*item.front().done)({item.front().request.id, result});
    item.clear();  // the callback and the file are let go before anyone is told that all is done
    lock = lock_soon(mutex);
    if (--outstanding > 0) return;
    direct_files.clear();
    all_done.notify_all();
  }

  /// The file opened past the page cache, and what that asks for now; null for a request that is not to go there.
  std::shared_ptr<DirectFile> direct_file(const ReadRequest& request, DirectAlignment& alignment) {
    if (request.size < direct_from) return nullptr;
    std::unique_lock lock(mutex);
    std::shared_ptr<DirectFile> file = direct_files[request.file.get()];
    if (!file) {
      lock.unlock();
      file = std::make_shared<DirectFile>(request.file);
      lock.lock();
      std::shared_ptr<DirectFile>& kept = direct_files[request.file.get()];
      if (kept) {
        file = kept;
      } else {
        kept = file;
        direct_use.failed(*file);
      }
    }
    alignment = file->alignment();
    return file;
  }
  void refuse_direct(DirectFile& file, int error) {
    const std::lock_guard lock(mutex);
    file.refuse(error);
    direct_use.failed(file);
  }
  void count(const ReadStep& step, uint64_t bytes) {
    const std::lock_guard lock(mutex);
    direct_use.add(step, bytes);
  }

  void deliver_dropped(std::unique_lock<std::mutex>& lock) {
    ReadItems next = take_first(dropped);
    const int64_t result = next.front().result;
    deliver(lock, std::move(next), result);
  }

  bool must_end(const Slot& slot) {
    const std::lock_guard lock(mutex);
    return stopping || slot.state == Slot::State::abandoned;
  }

  /// All bytes of one request, or −errno.
  int64_t read_all(const ReadRequest& request, const Slot& slot) {
    constexpr uint64_t kMost = std::numeric_limits<off_t>::max();
    if (request.offset > kMost || request.size > kMost - request.offset) return -EINVAL;
    DirectAlignment alignment;
    const std::shared_ptr<DirectFile> direct = direct_file(request, alignment);
    uint64_t done = 0;
    while (done < request.size) {
      std::byte* into = request.into + done;
      const uint64_t offset = request.offset + done;
      const ReadStep step = next_step(offset, reinterpret_cast<uintptr_t>(into), request.size - done, alignment);
      const size_t wanted = static_cast<size_t>(std::min<uint64_t>(step.size, 1u << 30));
      const ssize_t got =
          raw->pread(step.direct ? direct->fd(true) : request.file->fd(), into, wanted, static_cast<off_t>(offset));
      if (got == 0) return -ENODATA;
      if (got > 0) {
        done += static_cast<uint64_t>(got);
        if (direct) count(step, static_cast<uint64_t>(got));
        if (done < request.size && must_end(slot)) return -ECANCELED;
        continue;
      }
      const int error = errno;
      if (error == EINVAL && step.direct) {
        refuse_direct(*direct, error);
        alignment = {};
        continue;
      }
      if (error != EINTR && error != EAGAIN) return -error;
      if (must_end(slot)) return -ECANCELED;
      if (error == EAGAIN) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    return static_cast<int64_t>(request.size);
  }

  bool has_work() const { return stopping || !dropped.empty() || !queue.empty(); }

  /// In front of a GPU there is something to read again as soon as a slot has been copied: worth a short wait awake.
  void wait_for_work(std::unique_lock<std::mutex>& lock) {
    constexpr int kPauses = 1000;  // about 40 µs
    if (!has_work()) {
      nothing_to_do.store(true, std::memory_order_relaxed);
      lock.unlock();
      for (int i = 0; i < kPauses && nothing_to_do.load(std::memory_order_relaxed); ++i) pause_core();
      lock = lock_soon(mutex);
    }
    work.wait(lock, [&] { return has_work(); });
  }

  /// Each thread starts two more, so that whoever makes a reader waits for one alone: 28 for two GPUs, one after the
  /// other and beside threads that touch rings, took 2 to 4 ms of a load of 150.
  void start_thread_of(size_t i) {
    threads[i] = start_thread("reading", [this, i] {
      try {
        for (const size_t next : {2 * i + 1, 2 * i + 2}) {
          if (next < threads.size()) start_thread_of(next);
        }
      } catch (const Error&) {  // fewer than wanted will do
      }
      run(slots[i]);
    });
  }

  void run(Slot& slot) {
    std::unique_lock lock(mutex);
    for (;;) {
      wait_for_work(lock);
      if (!dropped.empty()) {
        deliver_dropped(lock);
      } else if (!queue.empty()) {
        if (Clock::now() >= deadline) {  // the keeper is late, or could not be started
          drop(queue, -ETIMEDOUT, dropped);
          continue;
        }
        slot.item = take_first(queue);
        slot.state = Slot::State::reading;
        int64_t result = 0;
        {
          const ReadRequest request = slot.item.front().request;  // the keeper may take the slot's
          lock.unlock();
          result = read_all(request, slot);
        }
        lock = lock_soon(mutex);
        const bool mine = slot.state == Slot::State::reading;
        slot.state = Slot::State::delivering;
        if (mine) deliver(lock, std::move(slot.item), result);
        slot.item.clear();
        slot.state = Slot::State::idle;
      } else if (stopping) {
        return;
      }
    }
  }

  void keep_time() {
    std::unique_lock lock(mutex);
    for (;;) {
      if (!dropped.empty()) {
        deliver_dropped(lock);
        continue;
      }
      if (stopping) return;
      if (Clock::now() >= deadline) {
        drop(queue, -ETIMEDOUT, dropped);
        for (Slot& slot : slots) {
          if (slot.state != Slot::State::reading) continue;
          slot.state = Slot::State::abandoned;
          drop(slot.item, -ETIMEDOUT, dropped);
        }
        if (!dropped.empty()) continue;
      }
      if (deadline == Clock::time_point::max() || Clock::now() >= deadline) {
        keep.wait(lock);
      } else {
        keep.wait_until(lock, deadline);
      }
    }
  }

  /// Under the mutex. Without a keeper (no thread to be had) the workers do its work as far as they can.
  void start_keeper() {
    if (keeper.joinable() || stopping) return;
    try {
      keeper = std::thread([this] { keep_time(); });
    } catch (const std::system_error&) {
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
      drop(queue, -ECANCELED, dropped);
    }
    work.notify_all();
    keep.notify_all();
    for (std::thread& thread : threads) {  // who has started it comes before
      if (thread.joinable()) thread.join();
    }
    if (keeper.joinable()) keeper.join();
  }
};

PreadReader::PreadReader(int n_threads, std::shared_ptr<RawRead> raw, std::string name, std::string why,
                         uint64_t direct_from)
    : impl_(std::make_unique<Impl>()) {
  impl_->raw = raw ? std::move(raw) : std::make_shared<RawRead>();
  impl_->name = std::move(name);
  impl_->why = std::move(why);
  impl_->direct_from = direct_from;
  impl_->slots.resize(static_cast<size_t>(std::max(1, n_threads)));
  impl_->threads.resize(impl_->slots.size());
  impl_->start_thread_of(0);
}

PreadReader::~PreadReader() { impl_->stop(); }

void PreadReader::submit(std::span<const ReadRequest> requests, const ReadCallback& done) {
  const auto callback = std::make_shared<const ReadCallback>(done);
  {
    const std::lock_guard lock(impl_->mutex);
    const bool late = Clock::now() >= impl_->deadline;
    ReadItems items;
    for (const ReadRequest& request : requests) items.push_back({request, callback, 0});
    impl_->outstanding += items.size();
    if (impl_->stopping || late) {
      drop(items, impl_->stopping ? -ECANCELED : -ETIMEDOUT, impl_->dropped);
    } else {
      impl_->queue.splice(impl_->queue.end(), items);
    }
  }
  impl_->nothing_to_do.store(false, std::memory_order_relaxed);
  if (requests.size() == 1) {
    impl_->work.notify_one();
  } else {
    impl_->work.notify_all();
  }
  impl_->keep.notify_all();
}

void PreadReader::set_deadline(Clock::time_point deadline) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->deadline = deadline;
    if (deadline != Clock::time_point::max()) impl_->start_keeper();
  }
  impl_->keep.notify_all();
}

void PreadReader::cancel() {
  {
    const std::lock_guard lock(impl_->mutex);
    drop(impl_->queue, -ECANCELED, impl_->dropped);
    if (!impl_->dropped.empty()) impl_->start_keeper();
  }
  impl_->work.notify_all();
  impl_->keep.notify_all();
}

void PreadReader::wait() {
  std::unique_lock lock(impl_->mutex);
  impl_->all_done.wait(lock, [&] { return impl_->outstanding == 0; });
}

std::string_view PreadReader::name() const { return impl_->name; }
std::string PreadReader::why() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->why + impl_->direct_use.text();
}

}  // namespace firstlight
