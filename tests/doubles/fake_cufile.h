// SPDX-License-Identifier: Apache-2.0
// What a test tells the double of libcufile to be, and what it saw.
#pragma once
#include <atomic>
#include <cstdint>

namespace firstlight {

struct FakeCufile {
  // The machine:
  bool has_nvfs = true;               ///< else the driver opens only in compatibility mode
  uint64_t most_pinned = UINT64_MAX;  ///< bytes; registering more fails
  unsigned stats_uuid_at = 1000;      ///< where in its statistics the GPU's counters are, a multiple of 8
  bool miscounts = false;
  unsigned char uuid[16] = {7, 1, 2, 3};
  // Device memory is host memory from here; a read outside of it fails:
  const void* memory = nullptr;
  uint64_t memory_size = UINT64_MAX;
  // Faults of cuFileRead, by number of the call:
  uint64_t most_at_once = UINT64_MAX;  ///< short reads
  std::atomic<int64_t> fail_call{-1};  ///< this call fails …
  int fail_errno = 0;                  ///< … with −1 and this errno, or
  int fail_code = 0;                   ///< … with minus this code
  std::atomic<bool> stall{false};      ///< reads wait while it is set
  // What was seen:
  std::atomic<int64_t> n_reads{0}, n_registered_reads{0}, n_stalled{0};
  std::atomic<int> n_files{0}, n_buffers{0};  ///< registered now
  std::atomic<int> n_violations{0};           ///< of the interface's rules: each is a bug of the caller
  std::atomic<uint64_t> bytes{0};

  /// As it was at the beginning, with the driver closed.
  void (*reset)() = nullptr;
};

/// The name under which the library has its FakeCufile.
constexpr const char* kFakeCufileSymbol = "firstlight_fake_cufile";

}  // namespace firstlight
