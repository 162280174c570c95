// SPDX-License-Identifier: Apache-2.0
// Hashing a file of a checkpoint from storage: for verify, and for what an interrupted conversion left.
#pragma once
#include <atomic>
#include <functional>
#include <span>
#include <stop_token>

#include "firstlight/ckpt/shard_pipeline.h"

namespace firstlight {

/// Reads all of the file, in order, through `buffer` (one of for_each_file). Leaves are those of a part: of the bytes
/// from kDataBegin on. `bytes_read` counts up as it goes. Throws Interrupted between pieces.
PartDigest digest_file(const File& file, std::span<std::byte> buffer, const std::stop_token& stop,
                       std::atomic<uint64_t>& bytes_read);

/// Calls fn(i, buffer) for i in [0, n) from up to n_threads threads (0: usable cores), each with a page-aligned buffer
/// of its own (8 MiB and DirectReader::kSlackBytes); between calls, and while they run, the calling thread calls
/// tick(). The first exception is rethrown.
void for_each_file(size_t n, int n_threads, const std::function<void(size_t i, std::span<std::byte> buffer)>& fn,
                   const std::function<void()>& tick);

}  // namespace firstlight
