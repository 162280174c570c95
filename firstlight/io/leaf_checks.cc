// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/leaf_checks.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "firstlight/base/start_thread.h"

namespace firstlight {

namespace {

struct Added {
  std::vector<LeafBytes> leaves;
  LeafChecks::Done done;
};

}  // namespace

struct LeafChecks::Impl {
  std::unique_ptr<LeafHasher> hasher;  // of the thread; if there is none …
  std::exception_ptr no_hasher;        // … why
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::vector<Added> waiting;
  size_t outstanding = 0;
  bool stopping = false;
  std::chrono::steady_clock::duration spent{};
  std::thread thread;

  void hash(const std::vector<Added>& batch, std::vector<uint64_t>& hashes) {
    if (!hasher) std::rethrow_exception(no_hasher);
    std::vector<LeafBytes> leaves;
    for (const Added& added : batch) leaves.insert(leaves.end(), added.leaves.begin(), added.leaves.end());
    hashes.resize(leaves.size());
    hasher->hash(leaves, hashes);
  }

  void take(const std::vector<Added>& batch) {
    std::vector<uint64_t> hashes;
    std::exception_ptr failure;
    const auto begin = std::chrono::steady_clock::now();
    try {
      hash(batch, hashes);
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex);
      spent += std::chrono::steady_clock::now() - begin;
    }
    std::span<const uint64_t> rest = hashes;
    for (const Added& added : batch) {
      added.done(failure ? std::span<const uint64_t>{} : rest.first(added.leaves.size()), failure);
      if (!failure) rest = rest.subspan(added.leaves.size());
    }
  }

  void run(const MakeHasher& make) {
    try {
      hasher = make();
    } catch (...) {
      no_hasher = std::current_exception();
    }
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return stopping || !waiting.empty(); });
      if (stopping) return;
      const std::vector<Added> batch = std::exchange(waiting, {});
      lock.unlock();
      take(batch);
      lock.lock();
      outstanding -= batch.size();
      if (outstanding == 0) changed.notify_all();
    }
  }
};

LeafChecks::LeafChecks(MakeHasher make) : impl_(std::make_unique<Impl>()) {
  impl_->thread = start_thread("hashing", [impl = impl_.get(), make = std::move(make)] { impl->run(make); });
}

LeafChecks::~LeafChecks() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->changed.notify_all();
  impl_->thread.join();
}

void LeafChecks::add(std::vector<LeafBytes> leaves, Done done) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->waiting.push_back({std::move(leaves), std::move(done)});
    ++impl_->outstanding;
  }
  impl_->changed.notify_all();
}

void LeafChecks::wait() {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->outstanding == 0; });
}

double LeafChecks::seconds() const {
  const std::lock_guard lock(impl_->mutex);
  return std::chrono::duration<double>(impl_->spent).count();
}

}  // namespace firstlight
