// SPDX-License-Identifier: Apache-2.0
// A submission and completion ring, as io_uring(7) has one: what UringReader needs of the kernel, behind a class so
// that tests can put faults in its place (raw_ring.h).
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace firstlight {

/// One read(2) at an offset.
struct RingRead {
  uint64_t id = 0;  ///< the caller's, below 2⁶³; one read an id at a time
  int fd = -1;
  uint64_t offset = 0;
  std::byte* into = nullptr;
  uint32_t size = 0;
};

struct RingDone {
  uint64_t id = 0;
  int64_t result = 0;  ///< bytes, 0 at the end of the file, or −errno
};

/// One thread at a time, but wake(). Every read comes back from wait() once; the ring must outlive them.
class Ring {
 public:
  using Clock = std::chrono::steady_clock;
  virtual ~Ring() = default;
  /// Begins a read. At most as many at once as the ring was made for.
  virtual void read(const RingRead& read) = 0;
  /// Asks for an early end of a read that has begun, with the next wait(). It comes back in any case, with what it gave
  /// or −ECANCELED.
  virtual void cancel(uint64_t id) = 0;
  /// Blocks until something is done, wake() was called, or `until`. The answer is valid until the next call, and may be
  /// empty.
  virtual std::span<const RingDone> wait(Clock::time_point until) = 0;
  /// Ends a wait(), this one or the next. From any thread.
  virtual void wake() = 0;
  /// Reads go to these slots again and again: they are pinned and mapped once instead of at each read. Returns "" or
  /// why that was refused; reads work all the same. Nothing may be under way.
  virtual std::string use_memory(std::span<const std::span<std::byte>> slots) = 0;
  /// Descriptors seen so far may now be closed; without this the kernel keeps a file open that a read has named.
  virtual void forget_files() = 0;
};

/// The kernel's, for `depth` reads at once. Throws Error{unsupported} in words if the kernel has none, a container or a
/// setting forbids it, or there is no memory for it.
std::unique_ptr<Ring> make_kernel_ring(unsigned depth);

/// "" if io_uring works for this process, found by reading through it (containers forbid the calls although the kernel
/// has them); else the reason in one line. Some 0.1 ms; asked once a process.
const std::string& why_no_io_uring();

}  // namespace firstlight
