// SPDX-License-Identifier: Apache-2.0
// A Reader whose requests end in a device's memory, which may come to be while they wait.
#pragma once
#include <exception>
#include <functional>

#include "firstlight/io/reader.h"

namespace firstlight {

/// As Reader says; `into` is an address of the device, and a request completes when its bytes are there. −EREMOTEIO:
/// the device or its library failed, failure() says how.
class DeviceReader : public Reader {
 public:
  /// Where the bytes of request `id` belong. Must not throw.
  using Address = std::function<std::byte*(uint64_t id)>;
  /// From now on requests are taken, but end nowhere: their `into` need not be known yet.
  virtual void hold() = 0;
  /// Ends that: each request that has no `into`, also one that comes later, goes where `address` says.
  virtual void release(Address address) = 0;
  /// For requests that end in host memory.
  virtual Reader& host_reader() = 0;
  /// Blocks until the device stands; rethrows why it does not.
  virtual void wait_until_ready() = 0;
  /// What failed first on the way to the device, or null.
  virtual std::exception_ptr failure() const = 0;
};

}  // namespace firstlight
