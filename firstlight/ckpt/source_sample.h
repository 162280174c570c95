// SPDX-License-Identifier: Apache-2.0
// A cheap look at a tensor's bytes, for telling two models of the same shapes apart.
#pragma once
#include "firstlight/base/hash.h"
#include "firstlight/io/file.h"

namespace firstlight {

/// Hashes 4 KiB at the beginning, in the middle and at the end of a tensor's bytes. Training changes every tensor it
/// touches nearly everywhere, so another checkpoint of the same shapes is told from this one after 12 KiB a tensor; a
/// change of single weights elsewhere is not seen.
void hash_sample(Xxh3_128& hash, const File& file, uint64_t offset, uint64_t size_bytes);

}  // namespace firstlight
