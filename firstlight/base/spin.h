// SPDX-License-Identifier: Apache-2.0
// Short waits that do not sleep: on a virtual machine a core that has gone to sleep takes tens of microseconds to wake.
#pragma once
#include <mutex>
#include <thread>

namespace firstlight {

/// Some 40 ns in which a core leaves its resources to others.
inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

/// Takes a mutex that is only ever held for a microsecond or so.
inline std::unique_lock<std::mutex> lock_soon(std::mutex& mutex) {
  constexpr int kTries = 100;
  for (int i = 0; i < kTries; ++i) {
    if (std::unique_lock lock(mutex, std::try_to_lock); lock.owns_lock()) return lock;
    pause_core();
  }
  return std::unique_lock(mutex);
}

}  // namespace firstlight
