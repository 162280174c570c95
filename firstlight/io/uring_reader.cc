// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/uring_reader.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/io/direct_file.h"
#include "firstlight/io/read_items.h"

namespace firstlight {

namespace {

using Clock = Reader::Clock;

/// A place in a worker's ring. A lost one was given up by the deadline, but the kernel may still write to its memory.
struct Place {
  enum class State { free, live, lost };
  State state = State::free;
  ReadItems item;     // one while live
  uint64_t done = 0;  // bytes that are there
  ReadStep step;      // under way
  std::shared_ptr<DirectFile> file;
};

/// Owned by its thread, but for the ring's wake().
struct Worker {
  std::unique_ptr<Ring> ring;
  std::vector<Place> places;
  size_t n_live = 0, n_lost = 0;
  ReadItems ended;                                           // with their results, to be delivered
  std::map<const File*, std::shared_ptr<DirectFile>> files;  // those named since the worker was last idle
  uint64_t memory_version = 0;
  std::thread thread;
};

}  // namespace

// Every request is in exactly one of: queue → a worker's place (live) → ended → done; queue → dropped → done. A live
// one that the deadline overtakes is done at once, its place stays lost until the kernel gives it back. Who has read
// takes what it gets as a chance to hash, which is long: the place goes to the next request before.
class UringReader final : public Reader {
 public:
  explicit UringReader(const UringOptions& options);
  ~UringReader() override { stop(); }

  void submit(std::span<const ReadRequest> requests, const ReadCallback& done) override;
  void set_deadline(Clock::time_point deadline) override;
  void cancel() override;
  void wait() override;
  void use_memory(std::span<const std::span<std::byte>> slots) override;
  std::string_view name() const override { return name_; }
  std::string why() const override;

 private:
  void run(Worker& worker);
  bool turn(Worker& worker, std::unique_lock<std::mutex>& lock);
  void begin(Worker& worker, ReadItems item);
  void start_step(Worker& worker, size_t place);
  void finish_step(Worker& worker, const RingDone& done);
  void complete(Worker& worker, Place& place, int64_t result);
  void give_up(Worker& worker);
  void close_files(Worker& worker);
  void take_memory(Worker& worker, std::unique_lock<std::mutex>& lock);
  void deliver(ReadItems item, int64_t result);
  void deliver_first(ReadItems& from, std::unique_lock<std::mutex>& lock);
  bool is_stopping();
  void wake_all();
  void stop();

  std::string name_, why_;
  uint64_t direct_from_;

  mutable std::mutex mutex_;
  std::condition_variable all_done_;
  ReadItems queue_, dropped_;
  uint64_t outstanding_ = 0;  // submitted, callback not yet returned
  int n_with_files_ = 0;      // workers that keep files open
  Clock::time_point deadline_ = Clock::time_point::max();
  bool stopping_ = false;
  std::vector<std::span<std::byte>> memory_;
  uint64_t memory_version_ = 0;
  DirectUse direct_use_;
  std::string why_not_pinned_;  // the first reason

  std::vector<std::unique_ptr<Worker>> workers_;
};

UringReader::UringReader(const UringOptions& options)
    : name_(options.name), why_(options.why), direct_from_(options.direct_from) {
  const auto depth = static_cast<unsigned>(std::clamp(options.depth, 1, 1024));
  for (int i = 0; i < std::max(1, options.n_threads); ++i) {
    auto worker = std::make_unique<Worker>();
    worker->ring = options.make_ring ? options.make_ring(depth) : make_kernel_ring(depth);
    worker->places.resize(depth);
    workers_.push_back(std::move(worker));
  }
  try {
    for (const auto& worker : workers_) {
      worker->thread = start_thread("reading", [this, &worker = *worker] { run(worker); });
    }
  } catch (const Error&) {
    if (!workers_[0]->thread.joinable()) throw;  // fewer than wanted will do
  }
}

bool UringReader::is_stopping() {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void UringReader::wake_all() {
  for (const auto& worker : workers_) worker->ring->wake();
}

/// Without the mutex.
void UringReader::deliver(ReadItems item, int64_t result) {
  (*item.front().done)({item.front().request.id, result});
  item.clear();  // the callback and the file are let go before anyone is told that all is done
  const std::lock_guard lock(mutex_);
  if (--outstanding_ == 0) all_done_.notify_all();
}

void UringReader::deliver_first(ReadItems& from, std::unique_lock<std::mutex>& lock) {
  ReadItems item = take_first(from);
  lock.unlock();
  const int64_t result = item.front().result;
  deliver(std::move(item), result);
  lock.lock();
}

void UringReader::complete(Worker& worker, Place& place, int64_t result) {
  place.item.front().result = result;
  worker.ended.splice(worker.ended.end(), place.item);
  place.state = Place::State::free;
  place.file.reset();
  --worker.n_live;
}

/// A request gets its place; what needs no I/O is done at once.
void UringReader::begin(Worker& worker, ReadItems item) {
  const auto free = std::find_if(worker.places.begin(), worker.places.end(),
                                 [](const Place& place) { return place.state == Place::State::free; });
  const ReadRequest& request = item.front().request;
  constexpr uint64_t kMost = std::numeric_limits<off_t>::max();
  if (request.offset > kMost || request.size > kMost - request.offset) return deliver(std::move(item), -EINVAL);
  if (request.size == 0) return deliver(std::move(item), 0);
  std::shared_ptr<DirectFile>& file = worker.files[request.file.get()];
  if (!file) {
    file = std::make_shared<DirectFile>(request.file);
    const std::lock_guard lock(mutex_);
    if (worker.files.size() == 1) ++n_with_files_;
    direct_use_.failed(*file);
  }
  free->state = Place::State::live;
  free->file = file;
  free->done = 0;
  free->item = std::move(item);
  ++worker.n_live;
  start_step(worker, static_cast<size_t>(free - worker.places.begin()));
}

void UringReader::start_step(Worker& worker, size_t index) {
  Place& place = worker.places[index];
  const ReadRequest& request = place.item.front().request;
  const uint64_t offset = request.offset + place.done;
  std::byte* into = request.into + place.done;
  const DirectAlignment alignment = request.size < direct_from_ ? DirectAlignment{} : place.file->alignment();
  place.step = next_step(offset, reinterpret_cast<uintptr_t>(into), request.size - place.done, alignment);
  place.step.size = std::min<uint64_t>(place.step.size, 1u << 30);
  worker.ring->read({index, place.file->fd(place.step.direct), offset, into, static_cast<uint32_t>(place.step.size)});
}

void UringReader::finish_step(Worker& worker, const RingDone& done) {
  Place& place = worker.places[done.id];
  if (place.state == Place::State::lost) {
    place.state = Place::State::free;
    place.file.reset();
    --worker.n_lost;
    return;
  }
  const uint64_t size = place.item.front().request.size;
  if (done.result > 0) {
    const auto n = static_cast<uint64_t>(done.result);
    place.done += n;
    {
      const std::lock_guard lock(mutex_);
      direct_use_.add(place.step, n);
    }
    if (place.done == size) return complete(worker, place, static_cast<int64_t>(size));
  } else if (done.result == 0) {
    return complete(worker, place, -ENODATA);
  } else if (done.result == -EINVAL && place.step.direct) {
    place.file->refuse(EINVAL);
    const std::lock_guard lock(mutex_);
    direct_use_.failed(*place.file);
  } else if (done.result != -EINTR && done.result != -EAGAIN) {
    return complete(worker, place, done.result);
  }
  if (is_stopping()) return complete(worker, place, -ECANCELED);
  if (done.result == -EAGAIN) std::this_thread::sleep_for(std::chrono::microseconds(200));
  start_step(worker, static_cast<size_t>(done.id));
}

/// The deadline has come: what is under way ends now, whatever the kernel does with it.
void UringReader::give_up(Worker& worker) {
  for (size_t i = 0; i < worker.places.size(); ++i) {
    Place& place = worker.places[i];
    if (place.state != Place::State::live) continue;
    place.state = Place::State::lost;
    ++worker.n_lost;
    --worker.n_live;
    worker.ring->cancel(i);
    ReadItems item = std::move(place.item);
    place.item.clear();
    deliver(std::move(item), -ETIMEDOUT);
  }
}

/// An idle worker keeps no file open.
void UringReader::close_files(Worker& worker) {
  worker.ring->forget_files();
  worker.files.clear();
  const std::lock_guard lock(mutex_);
  if (--n_with_files_ == 0) all_done_.notify_all();
}

void UringReader::take_memory(Worker& worker, std::unique_lock<std::mutex>& lock) {
  const std::vector<std::span<std::byte>> slots = memory_;
  worker.memory_version = memory_version_;
  lock.unlock();
  const std::string why_not = worker.ring->use_memory(slots);
  lock.lock();
  if (why_not_pinned_.empty()) why_not_pinned_ = why_not;
}

/// All that can be done without waiting for the kernel; of several that have ended one alone. False when the worker is
/// to end.
bool UringReader::turn(Worker& worker, std::unique_lock<std::mutex>& lock) {
  for (;;) {
    const bool late = Clock::now() >= deadline_;
    if (late) drop(queue_, -ETIMEDOUT, dropped_);
    if (late && worker.n_live > 0) {
      lock.unlock();
      give_up(worker);
      lock.lock();
    } else if (!dropped_.empty()) {
      deliver_first(dropped_, lock);
    } else if (worker.memory_version != memory_version_ && worker.n_live + worker.n_lost == 0) {
      take_memory(worker, lock);
    } else if (!queue_.empty() && worker.n_live + worker.n_lost < worker.places.size() &&
               worker.ended.size() <= worker.places.size()) {
      ReadItems next = take_first(queue_);
      lock.unlock();
      begin(worker, std::move(next));
      lock.lock();
    } else if (!worker.ended.empty()) {
      deliver_first(worker.ended, lock);
      if (!worker.ended.empty()) return true;
    } else if (worker.n_live == 0 && queue_.empty() && !worker.files.empty()) {
      lock.unlock();
      close_files(worker);
      lock.lock();
    } else {
      return !stopping_ || worker.n_live + worker.n_lost > 0 || !queue_.empty();
    }
  }
}

void UringReader::run(Worker& worker) {
  std::unique_lock lock(mutex_);
  while (turn(worker, lock)) {
    const bool has_work = worker.n_live > 0 || !queue_.empty();
    const Clock::time_point until = !worker.ended.empty() ? Clock::now()
                                    : has_work            ? deadline_
                                                          : Clock::time_point::max();
    lock.unlock();
    for (const RingDone& done : worker.ring->wait(until)) finish_step(worker, done);
    lock.lock();
  }
}

void UringReader::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    drop(queue_, -ECANCELED, dropped_);
  }
  wake_all();
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

void UringReader::submit(std::span<const ReadRequest> requests, const ReadCallback& done) {
  const auto callback = std::make_shared<const ReadCallback>(done);
  {
    const std::lock_guard lock(mutex_);
    const bool late = Clock::now() >= deadline_;
    ReadItems items;
    for (const ReadRequest& request : requests) items.push_back({request, callback, 0});
    outstanding_ += items.size();
    if (stopping_ || late) {
      drop(items, stopping_ ? -ECANCELED : -ETIMEDOUT, dropped_);
    } else {
      queue_.splice(queue_.end(), items);
    }
  }
  wake_all();
}

void UringReader::set_deadline(Clock::time_point deadline) {
  {
    const std::lock_guard lock(mutex_);
    deadline_ = deadline;
  }
  wake_all();
}

void UringReader::cancel() {
  {
    const std::lock_guard lock(mutex_);
    drop(queue_, -ECANCELED, dropped_);
  }
  wake_all();
}

void UringReader::wait() {
  std::unique_lock lock(mutex_);
  all_done_.wait(lock, [&] { return outstanding_ == 0 && n_with_files_ == 0; });
}

void UringReader::use_memory(std::span<const std::span<std::byte>> slots) {
  {
    const std::lock_guard lock(mutex_);
    memory_.assign(slots.begin(), slots.end());
    ++memory_version_;
  }
  wake_all();
}

std::string UringReader::why() const {
  const std::lock_guard lock(mutex_);
  std::string text = why_ + direct_use_.text();
  if (!why_not_pinned_.empty()) text += str("; the ring's memory is not registered: ", why_not_pinned_);
  return text;
}

std::unique_ptr<Reader> make_uring_reader(const UringOptions& options) {
  return std::make_unique<UringReader>(options);
}

}  // namespace firstlight
