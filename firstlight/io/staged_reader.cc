// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/staged_reader.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "firstlight/base/spin.h"
#include "firstlight/base/start_thread.h"

namespace firstlight {

namespace {

/// A request under way: it completes when its last piece has ended, with the first piece's error if there is one.
struct Whole {
  ReadRequest request;
  std::shared_ptr<const ReadCallback> done;
  uint64_t pieces_left = 0;
  int64_t error = 0;
};

struct Piece {
  std::shared_ptr<Whole> whole;
  uint64_t begin = 0, size = 0;  // in the request
};

/// What is in a slot, or coming.
struct RingSlot {
  Piece piece;
  uint64_t reads_left = 0;
  int64_t error = 0;     // of the first read that failed
  bool is_lost = false;  // a read that was given up may still write to it
  bool is_prepared = false;
  bool is_held = false;  // read, waits to be prepared or for release()
};

}  // namespace

// Every piece is in one of: queue → a slot being read by `below` → (held in the slot →) copies → ended; queue → ended.
// What has ended is counted by end() under the mutex; completions are delivered by the finisher alone, without the
// mutex. Copies are started by the thread that has read, and their ends are polled for: to sleep until one ends and be
// woken takes as long as a copy.
struct StagedReader::Impl {
  std::unique_ptr<Reader> below;
  std::unique_ptr<Staging> staging;  // set once, by the preparer, before `made`
  mutable std::mutex mutex;
  std::condition_variable work;     // for the finisher
  std::condition_variable changed;  // nothing outstanding
  std::deque<Piece> queue;
  std::vector<RingSlot> slots;
  std::vector<int> free_slots;
  std::deque<int> copies;                       // slots, in the order in which their copies were started, nearly
  std::deque<std::shared_ptr<Whole>> complete;  // to be delivered
  uint64_t outstanding = 0;                     // requests whose callback has not returned
  int n_busy = 0;                               // slots that `below` fills or whose copy is being started
  int n_lost = 0;
  bool made = false, holding = false, late = false, stopping = false;
  std::shared_future<void> started;  // deferred: runs where it is first waited for
  Address address;
  std::exception_ptr failure;
  std::thread preparer, finisher;

  /// Under the mutex.
  void end(const Piece& piece, int64_t error) {
    Whole& whole = *piece.whole;
    if (whole.error == 0) whole.error = error;
    if (--whole.pieces_left != 0) return;
    complete.push_back(piece.whole);
    work.notify_all();
  }

  void drop_queue(int64_t error) {
    for (const Piece& piece : queue) end(piece, error);
    queue.clear();
  }

  void drop_held(int64_t error) {
    for (size_t i = 0; i < slots.size(); ++i) {
      if (!std::exchange(slots[i].is_held, false)) continue;
      end(std::exchange(slots[i].piece, {}), error);
      free_slots.push_back(static_cast<int>(i));
    }
  }

  /// Under the mutex: gives free slots to the next pieces. `below` takes requests without calling back.
  void pump() {
    if (!made) return;
    if (stopping) return drop_queue(-ECANCELED);
    if (failure) return drop_queue(-EREMOTEIO);
    if (late || n_lost == staging->n_slots()) return drop_queue(-ETIMEDOUT);
    while (!queue.empty() && !free_slots.empty()) {
      Piece piece = std::move(queue.front());
      queue.pop_front();
      if (piece.whole->error != 0) {  // the rest of a request that has failed
        end(piece, piece.whole->error);
        continue;
      }
      const int slot = free_slots.back();
      free_slots.pop_back();
      fill(slot, piece);
    }
  }

  void fill(int i, const Piece& piece) {
    const ReadRequest& whole = piece.whole->request;
    std::vector<ReadRequest> reads;
    uint64_t at = 0;
    do {
      const uint64_t n = std::min(staging->read_bytes(), piece.size - at);
      reads.push_back({n, whole.file, whole.offset + piece.begin + at, n, staging->slot(i) + at});
      at += n;
    } while (at < piece.size);
    RingSlot& slot = slots[static_cast<size_t>(i)];
    slot = {.piece = piece, .reads_left = reads.size(), .is_prepared = slot.is_prepared};
    ++n_busy;
    below->submit(reads, [this, i](const ReadCompletion& done) { on_read(i, done); });
  }

  /// On a thread of `below`; the id of a read is its size.
  void on_read(int i, const ReadCompletion& done) {
    std::unique_lock lock = lock_soon(mutex);
    RingSlot& slot = slots[static_cast<size_t>(i)];
    if (done.result != static_cast<int64_t>(done.id) && slot.error == 0) {
      slot.error = done.result < 0 ? done.result : -EIO;
    }
    slot.is_lost = slot.is_lost || done.result == -ETIMEDOUT;
    if (--slot.reads_left > 0) return;
    --n_busy;
    if (slot.error == 0 && !failure && !stopping) {
      slot.is_held = true;
      if (slot.is_prepared && !holding) start(lock, i);
      return;
    }
    if (slot.is_lost) {
      ++n_lost;
      late = true;
    } else {
      free_slots.push_back(i);
    }
    end(std::exchange(slot.piece, {}), slot.error != 0 ? slot.error : failure ? -EREMOTEIO : -ECANCELED);
    pump();
    work.notify_all();
  }

  /// Without the mutex meanwhile: the slot is neither free nor held, but this thread's.
  void start(std::unique_lock<std::mutex>& lock, int i) {
    RingSlot& slot = slots[static_cast<size_t>(i)];
    slot.is_held = false;
    ReadRequest& whole = slot.piece.whole->request;
    if (whole.into == nullptr && address) whole.into = address(whole.id);
    std::byte* into = whole.into + slot.piece.begin;
    const uint64_t size = slot.piece.size;
    ++n_busy;
    lock.unlock();
    std::exception_ptr cause;
    try {
      staging->start(i, into, size);
    } catch (...) {
      cause = std::current_exception();
    }
    lock = lock_soon(mutex);
    --n_busy;
    if (cause) {
      fail(cause);
      free_slots.push_back(i);
      end(std::exchange(slot.piece, {}), -EREMOTEIO);
      pump();
    } else {
      copies.push_back(i);
    }
    work.notify_all();
  }

  /// Under the mutex: what waits in slots can never be copied.
  void fail(const std::exception_ptr& cause) {
    if (!failure) failure = cause;
    drop_held(-EREMOTEIO);
  }

  /// Under the mutex, which is given up now and then: starts what waited for nothing else any more.
  void start_held(std::unique_lock<std::mutex>& lock) {
    for (size_t i = 0; i < slots.size(); ++i) {
      if (slots[i].is_held && slots[i].is_prepared && !holding && !failure && !stopping) {
        start(lock, static_cast<int>(i));
      }
    }
  }

  /// Looks at the oldest copy without the mutex, and frees its slot if it is done.
  void poll_copy(std::unique_lock<std::mutex>& lock) {
    const int i = copies.front();
    lock.unlock();
    bool is_done = false;
    std::exception_ptr cause;
    try {
      is_done = staging->finished(i);
    } catch (...) {
      cause = std::current_exception();
    }
    if (!is_done && !cause) std::this_thread::yield();
    lock = lock_soon(mutex);
    if (!is_done && !cause) return;
    copies.pop_front();
    if (cause) fail(cause);
    free_slots.push_back(i);
    end(std::exchange(slots[static_cast<size_t>(i)].piece, {}), cause ? -EREMOTEIO : 0);
    pump();
  }

  void deliver(std::unique_lock<std::mutex>& lock) {
    std::shared_ptr<Whole> whole = std::move(complete.front());
    complete.pop_front();
    lock.unlock();
    const auto size = static_cast<int64_t>(whole->request.size);
    (*whole->done)({whole->request.id, whole->error != 0 ? whole->error : size});
    whole.reset();  // the callback and the file are let go before anyone is told that all is done
    lock.lock();
    if (--outstanding == 0) changed.notify_all();
  }

  /// Requests that came before the slots' length was known are whole pieces.
  void cut_queue() {
    for (const Piece& piece : std::exchange(queue, {})) cut(piece.whole);
  }

  /// At least one piece, also for no bytes.
  void cut(const std::shared_ptr<Whole>& whole) {
    const uint64_t step = staging ? staging->slot_bytes() : UINT64_MAX;
    const uint64_t size = whole->request.size;
    whole->pieces_left = size == 0 ? 1 : (size - 1) / step + 1;
    uint64_t begin = 0;
    do {
      const uint64_t n = std::min(step, size - begin);
      queue.push_back({whole, begin, n});
      begin += n;
    } while (begin < size);
  }

  void make(const MakeStaging& make_staging) {
    std::unique_ptr<Staging> ring = make_staging();
    std::vector<std::span<std::byte>> memory;
    for (int i = 0; i < ring->n_slots(); ++i) memory.push_back({ring->slot(i), ring->slot_bytes()});
    const std::lock_guard lock(mutex);
    if (!stopping) below->use_memory(memory);  // later `below` may be gone
    staging = std::move(ring);
    slots.resize(memory.size());
    for (int i = staging->n_slots(); i-- > 0;) free_slots.push_back(i);  // the first are prepared first
    made = true;
    cut_queue();
    pump();
  }

  void prepare_slots() {
    for (int i = 0; i < staging->n_slots(); ++i) {
      if (const std::lock_guard lock(mutex); stopping) return;
      staging->prepare(i);
      std::unique_lock lock(mutex);
      slots[static_cast<size_t>(i)].is_prepared = true;
      start_held(lock);
    }
  }

  void run_preparer(const MakeStaging& make_staging) {
    try {
      make(make_staging);
      started.get();
      prepare_slots();
    } catch (...) {
      const std::lock_guard lock(mutex);
      fail(std::current_exception());
      if (!made) cut_queue();
      made = true;
      pump();
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
      drop_queue(-ECANCELED);
      drop_held(-ECANCELED);
    }
    work.notify_all();
    if (preparer.joinable()) preparer.join();
    below.reset();  // waits for what writes to the slots; calls on_read() for the rest
    finisher.join();
  }

  void run_finisher() {
    std::unique_lock lock(mutex);
    for (;;) {
      if (!complete.empty()) {
        deliver(lock);
      } else if (!copies.empty()) {
        poll_copy(lock);
      } else if (stopping && n_busy == 0 && queue.empty()) {
        return;
      } else {
        work.wait(lock);
      }
    }
  }
};

StagedReader::StagedReader(std::unique_ptr<Reader> below, MakeStaging make, std::function<void()> start)
    : impl_(std::make_unique<Impl>()) {
  impl_->below = std::move(below);
  impl_->started = std::async(std::launch::deferred, [start = std::move(start)] {
    if (start) start();
  });
  impl_->finisher = start_thread("copying", [impl = impl_.get()] { impl->run_finisher(); });
  try {
    impl_->preparer =
        start_thread("the ring", [impl = impl_.get(), make = std::move(make)] { impl->run_preparer(make); });
  } catch (...) {
    impl_->stop();
    throw;
  }
}

StagedReader::~StagedReader() { impl_->stop(); }

void StagedReader::submit(std::span<const ReadRequest> requests, const ReadCallback& done) {
  const auto callback = std::make_shared<const ReadCallback>(done);
  const std::lock_guard lock(impl_->mutex);
  for (const ReadRequest& request : requests) {
    const auto whole = std::make_shared<Whole>(Whole{request, callback, 1, 0});
    impl_->outstanding += 1;
    if (impl_->stopping) {
      impl_->end({whole, 0, 0}, -ECANCELED);
    } else if (impl_->made) {
      impl_->cut(whole);
    } else {
      impl_->queue.push_back({whole, 0, request.size});
    }
  }
  impl_->pump();
}

void StagedReader::set_deadline(Clock::time_point deadline) {
  impl_->below->set_deadline(deadline);
  const std::lock_guard lock(impl_->mutex);
  impl_->late = false;
  impl_->pump();
}

void StagedReader::cancel() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->drop_queue(-ECANCELED);
    impl_->drop_held(-ECANCELED);
  }
  impl_->below->cancel();
}

void StagedReader::wait() {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->outstanding == 0; });
}

std::string_view StagedReader::name() const { return impl_->below->name(); }
std::string StagedReader::why() const { return impl_->below->why(); }
Reader& StagedReader::host_reader() { return *impl_->below; }

void StagedReader::hold() {
  const std::lock_guard lock(impl_->mutex);
  impl_->holding = true;
}

void StagedReader::release(Address address) {
  std::unique_lock lock(impl_->mutex);
  impl_->address = std::move(address);
  impl_->holding = false;
  impl_->start_held(lock);
}

void StagedReader::wait_until_ready() { impl_->started.get(); }

std::exception_ptr StagedReader::failure() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->failure;
}

}  // namespace firstlight
