// SPDX-License-Identifier: Apache-2.0
// What a GPU's driver does behind a benchmark's back.
#pragma once
#include <chrono>
#include <cstdint>
#include <thread>

namespace firstlight::cli {

/// The driver clears memory that was given back, with the engines that copy, behind the call that frees it: on an H200
/// at 200 GB/s, and host memory comes at 27 GB/s instead of 55 until it has ended. Waits twice as long as that takes
/// for `freed` bytes of one GPU: the next measurement is not to pay for the one before.
inline void rest_after_freeing(uint64_t freed) {
  constexpr double kClearedPerS = 100e9;
  std::this_thread::sleep_for(std::chrono::duration<double>(0.02 + static_cast<double>(freed) / kClearedPerS));
}

}  // namespace firstlight::cli
