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
/// request may be longer than a slot: it is cut. −EREMOTEIO: the copy failed, failure() says how.
class StagedReader final : public Reader {
 public:
  using MakeStaging = std::function<std::unique_ptr<Staging>()>;
  /// `make` runs at once on a thread of this reader (it may create a context: 0.2 s); requests wait for it.
  StagedReader(std::unique_ptr<Reader> below, MakeStaging make);
  ~StagedReader() override;
  StagedReader(const StagedReader&) = delete;
  StagedReader& operator=(const StagedReader&) = delete;

  void submit(std::span<const ReadRequest> requests, const ReadCallback& done) override;
  void set_deadline(Clock::time_point deadline) override;  ///< of the reader below as well
  void cancel() override;                                  ///< likewise
  void wait() override;
  std::string_view name() const override;
  std::string why() const override;

  /// The reader below, for requests that end in host memory.
  Reader& host_reader();
  /// Blocks until the staging stands; rethrows why it does not.
  void wait_until_ready();
  /// Of the first copy (or of making the staging) that failed, or null.
  std::exception_ptr failure() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight
