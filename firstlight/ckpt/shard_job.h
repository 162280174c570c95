// SPDX-License-Identifier: Apache-2.0
// shard() with a hook at every change of the file system, for tests of crashes.
#pragma once
#include "firstlight/ckpt/shard.h"
#include "firstlight/io/output_file.h"

namespace firstlight {

ShardReport shard_with_hook(const Source& source, const fs::path& out, const ShardOptions& options,
                            const StepHook& hook);

}  // namespace firstlight
