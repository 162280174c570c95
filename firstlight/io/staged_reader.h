// SPDX-License-Identifier: Apache-2.0
// A Reader whose requests end on a device: each is read into slots of pinned memory by another Reader and copied from
// there; reads and copies overlap.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "firstlight/io/reader.h"
#include "firstlight/io/staging.h"

namespace firstlight {

/// As Reader says; `into` is an address of the staging's device, and a request completes when its bytes are there. A
/// request may be longer than a slot: it is cut; what fits into a slot is read by several requests to the reader below
/// and copied by one call. −EREMOTEIO: the copy failed, failure() says how.
class StagedReader final : public Reader {
 public:
  using MakeStaging = std::function<std::unique_ptr<Staging>()>;
  /// Where the bytes of request `id` belong. Must not throw.
  using Address = std::function<std::byte*(uint64_t id)>;

  /// On a thread of this reader `make` runs at once, then `start` (which may make a context: 0.2 s), then slots are
  /// prepared one after another. Slots are read into as soon as they are made.
  StagedReader(std::unique_ptr<Reader> below, MakeStaging make, std::function<void()> start = {});
  ~StagedReader() override;
  StagedReader(const StagedReader&) = delete;
  StagedReader& operator=(const StagedReader&) = delete;

  void submit(std::span<const ReadRequest> requests, const ReadCallback& done) override;
  void set_deadline(Clock::time_point deadline) override;  ///< of the reader below as well
  void cancel() override;                                  ///< likewise
  void wait() override;
  std::string_view name() const override;
  std::string why() const override;

  /// From now on requests are read as far as there are slots, but not copied: their `into` need not be known yet.
  void hold();
  /// Ends that: each request that has no `into` goes where `address` says.
  void release(Address address);

  /// The reader below, for requests that end in host memory.
  Reader& host_reader();
  /// Blocks until the first slot is prepared, so that the device stands; rethrows why it does not.
  void wait_until_ready();
  /// Of the first copy (or of making the staging) that failed, or null.
  std::exception_ptr failure() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight
