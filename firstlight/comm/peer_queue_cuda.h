// SPDX-License-Identifier: Apache-2.0
// Exchanges between peers as kernels on a rank's stream: which kernel for how many floats, in how many blocks. Ranks
// that are threads and ranks that are processes queue the same, so they compute the same bits.
#pragma once
#include <cuda_runtime_api.h>

#include "firstlight/comm/peer_exchange-inl.h"

namespace firstlight::peer {

/// A rank's inbox, of `size` ranks: bytes, to be filled with 0xff at first.
uint64_t inbox_bytes(int size);

/// The kernels' code is brought to the current GPU now, not in a pass. Throws Error{device}, as all here.
void load_kernels();
/// Whether queue_sum() reads and writes the other ranks' data in place; else it goes by their inboxes.
bool is_in_place(int64_t n, int size);
/// The same call but for `rank` on all ranks, or their kernels wait until they are stopped.
void queue_sum(const Call& call, cudaStream_t stream);

}  // namespace firstlight::peer
