// SPDX-License-Identifier: Apache-2.0
// The bytes of a conversion: read, cut, hash, write, each on threads of its own, through buffers that are made once.
#pragma once
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/ckpt/shard_schedule.h"
#include "firstlight/io/output_file.h"

namespace firstlight {

/// What is known of a part once its bytes are.
struct PartDigest {
  uint64_t size = 0;
  std::string xxh3_128;          ///< of the whole file
  std::vector<uint64_t> leaves;  ///< of its data section
};

struct CutJob {
  const Source& source;
  const std::vector<StoredTensor>& tensors;
  const std::vector<CutTp>& tps;
  fs::path out;
  BufferPlan buffers;
  std::stop_token stop;
  const StepHook& hook;
  /// Called when the part stands under its name, durably; one call at a time, from any thread.
  std::function<void(const std::string& name, PartDigest digest)> done;
  /// From the calling thread: bytes on their way to disk so far.
  std::function<void(uint64_t bytes)> progress;
};

/// Writes all live parts. Throws what went wrong first (Interrupted if stop was asked for); threads are gone by then.
void run_pipeline(const CutJob& job);

}  // namespace firstlight
