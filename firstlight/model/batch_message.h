// SPDX-License-Identifier: Apache-2.0
// A batch as bytes, from rank 0 to the ranks that are other processes: of one program on one host.
#pragma once
#include <cstdint>
#include <vector>

#include "firstlight/model/llama_rank.h"

namespace firstlight {

/// What rank 0 wants next. `end`: nothing more.
enum class PassKind : int64_t { end, logits, likeliest, drawn };

/// A batch that came, and what its spans point to.
struct ReceivedBatch {
  PassKind kind = PassKind::end;
  Batch batch;
  std::vector<std::vector<int32_t>> pages, exact;  ///< of each span
  int64_t n_wanted = 0;
};

std::vector<std::byte> batch_message(PassKind kind, const Batch& batch);
/// Throws Error{bug} for bytes that batch_message() did not make.
ReceivedBatch read_batch_message(const std::vector<std::byte>& bytes);

}  // namespace firstlight
