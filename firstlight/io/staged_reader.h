// SPDX-License-Identifier: Apache-2.0
// A Reader whose requests end on a device: each is read into slots of pinned memory by another Reader and copied from
// there; reads and copies overlap.
#pragma once
#include <memory>
#include <string>

#include "firstlight/io/device_reader.h"
#include "firstlight/io/staging.h"

namespace firstlight {

/// As DeviceReader says; the device is the staging's. A request may be longer than a slot: it is cut; what fits into a
/// slot is read by several requests to the reader below and copied by one call.
class StagedReader final : public DeviceReader {
 public:
  using MakeStaging = std::function<std::unique_ptr<Staging>()>;

  /// On a thread of this reader `make` runs at once, and slots are read into as soon as it has; then they are prepared
  /// one after another, behind `start` (which may make a context: 0.2 s). That runs there or in wait_until_ready(), on
  /// the thread that comes first.
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

  void hold() override;  ///< requests are read as far as there are slots, but not copied
  void release(Address address) override;
  Reader& host_reader() override;    ///< the reader below
  void wait_until_ready() override;  ///< until `start` has returned, which need not wait for `make`
  std::exception_ptr failure() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight
