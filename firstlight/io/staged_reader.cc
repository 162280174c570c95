// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/staged_reader.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

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

struct Copying {
  Piece piece;
  int slot = 0;
};

}  // namespace

// Every piece is in one of: queue → a slot being read by `below` → copies → ended; queue → ended. What has ended is
// counted by end() under the mutex; completions are delivered by the finisher alone, without the mutex.
struct StagedReader::Impl {
  std::unique_ptr<Reader> below;
  std::unique_ptr<Staging> staging;  // set once, by the finisher, before `ready`
  mutable std::mutex mutex;
  std::condition_variable work;     // for the finisher
  std::condition_variable changed;  // ready, or nothing outstanding
  std::deque<Piece> queue;
  std::vector<int> free_slots;
  std::deque<Copying> copies;                   // in the order in which their copies were started, nearly
  std::deque<std::shared_ptr<Whole>> complete;  // to be delivered
  uint64_t outstanding = 0;                     // requests whose callback has not returned
  int n_reading = 0;                            // slots that `below` fills
  int n_lost = 0;                               // slots that a read which was given up may still write to
  bool ready = false, late = false, stopping = false;
  std::exception_ptr failure;
  std::thread finisher;

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

  /// Under the mutex: gives free slots to the next pieces. `below` takes requests without calling back.
  void pump() {
    if (!ready) return;
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
      ++n_reading;
      const ReadRequest& whole = piece.whole->request;
      const ReadRequest read{0, whole.file, whole.offset + piece.begin, piece.size, staging->slot(slot)};
      below->submit({&read, 1}, [this, piece, slot](const ReadCompletion& done) { on_read(piece, slot, done.result); });
    }
  }

  /// On a thread of `below`.
  void on_read(const Piece& piece, int slot, int64_t result) {
    std::exception_ptr cause;
    const bool read = result == static_cast<int64_t>(piece.size);
    if (read) {
      try {
        staging->start(slot, piece.whole->request.into + piece.begin, piece.size);
      } catch (...) {
        cause = std::current_exception();
      }
    }
    const std::lock_guard lock(mutex);
    --n_reading;
    if (read && !cause) {
      copies.push_back({piece, slot});
    } else {
      if (cause && !failure) failure = cause;
      if (result == -ETIMEDOUT) {
        ++n_lost;
        late = true;
      } else {
        free_slots.push_back(slot);
      }
      end(piece, cause ? -EREMOTEIO : result < 0 ? result : -EIO);
      pump();
    }
    work.notify_all();
  }

  /// Waits for the first copy without the mutex, then frees its slot.
  void finish_copy(std::unique_lock<std::mutex>& lock) {
    const Copying copy = std::move(copies.front());
    copies.pop_front();
    lock.unlock();
    std::exception_ptr cause;
    try {
      staging->finish(copy.slot);
    } catch (...) {
      cause = std::current_exception();
    }
    lock.lock();
    if (cause && !failure) failure = cause;
    free_slots.push_back(copy.slot);
    end(copy.piece, cause ? -EREMOTEIO : 0);
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

  void make(const MakeStaging& make_staging) {
    std::unique_ptr<Staging> made;
    std::exception_ptr cause;
    try {
      made = make_staging();
    } catch (...) {
      cause = std::current_exception();
    }
    std::vector<std::span<std::byte>> slots;
    for (int i = 0; made && i < made->n_slots(); ++i) slots.push_back({made->slot(i), made->slot_bytes()});
    const std::lock_guard lock(mutex);
    if (made && !stopping) below->use_memory(slots);  // later `below` may be gone
    staging = std::move(made);
    failure = cause;
    for (int i = 0; staging && i < staging->n_slots(); ++i) free_slots.push_back(i);
    ready = true;
    cut_queue();
    pump();
    changed.notify_all();
  }

  /// Requests that came before the slots' length was known are whole pieces.
  void cut_queue() {
    std::deque<Piece> whole = std::move(queue);
    queue.clear();
    for (const Piece& piece : whole) cut(piece.whole);
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

  void run(const MakeStaging& make_staging) {
    make(make_staging);
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock,
                [&] { return !complete.empty() || !copies.empty() || (stopping && n_reading == 0 && queue.empty()); });
      if (!complete.empty()) {
        deliver(lock);
      } else if (!copies.empty()) {
        finish_copy(lock);
      } else {
        return;
      }
    }
  }
};

StagedReader::StagedReader(std::unique_ptr<Reader> below, MakeStaging make) : impl_(std::make_unique<Impl>()) {
  impl_->below = std::move(below);
  impl_->finisher = start_thread("copying", [impl = impl_.get(), make = std::move(make)] { impl->run(make); });
}

StagedReader::~StagedReader() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->drop_queue(-ECANCELED);
  }
  impl_->work.notify_all();
  impl_->below.reset();  // waits for what writes to the slots; calls on_read() for the rest
  impl_->finisher.join();
}

void StagedReader::submit(std::span<const ReadRequest> requests, const ReadCallback& done) {
  const auto callback = std::make_shared<const ReadCallback>(done);
  const std::lock_guard lock(impl_->mutex);
  for (const ReadRequest& request : requests) {
    const auto whole = std::make_shared<Whole>(Whole{request, callback, 1, 0});
    impl_->outstanding += 1;
    if (impl_->stopping) {
      impl_->end({whole, 0, 0}, -ECANCELED);
    } else if (impl_->ready) {
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

void StagedReader::wait_until_ready() {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->ready; });
  if (impl_->failure) std::rethrow_exception(impl_->failure);
}

std::exception_ptr StagedReader::failure() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->failure;
}

}  // namespace firstlight
