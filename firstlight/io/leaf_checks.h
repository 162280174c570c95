// SPDX-License-Identifier: Apache-2.0
// The queue in front of a device's leaf hasher.
#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "firstlight/io/leaf_hasher.h"

namespace firstlight {

/// Hashes leaves on a thread of its own; all that have come meanwhile go into one call, so that a kernel gets many
/// leaves when bytes arrive fast, and few when they arrive slowly and the next layer waits for them.
class LeafChecks {
 public:
  using MakeHasher = std::function<std::unique_ptr<LeafHasher>()>;
  /// Called on that thread once for its add(), in order. `failure` is null, or why there are no hashes. Must not throw.
  using Done = std::function<void(std::span<const uint64_t> hashes, const std::exception_ptr& failure)>;

  /// `make` runs on that thread at once; if it throws, that is every leaf's failure.
  explicit LeafChecks(MakeHasher make);
  ~LeafChecks();  ///< forgets what waits, waits for what runs
  LeafChecks(const LeafChecks&) = delete;
  LeafChecks& operator=(const LeafChecks&) = delete;

  void add(std::vector<LeafBytes> leaves, Done done);
  /// Blocks until done() has returned for everything that was added.
  void wait();
  /// Seconds spent in the hasher so far.
  double seconds() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight
