// SPDX-License-Identifier: Apache-2.0
// What the offline commands show of their work.
#pragma once
#include <functional>

#include "firstlight/ckpt/shard.h"
#include "firstlight/cli/context.h"

namespace firstlight::cli {

inline std::function<void(const Progress&)> show(ProgressBar& bar) {
  return [&bar](const Progress& progress) { bar.update(progress.what, progress.done_bytes, progress.total_bytes); };
}

/// Bytes per second; 0 if there was no time.
inline double rate(uint64_t bytes, double seconds) { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }

}  // namespace firstlight::cli
