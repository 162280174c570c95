// SPDX-License-Identifier: Apache-2.0
// A rank's weights in memory: one arena and a table of where each tensor lies.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "firstlight/base/dtype.h"
#include "firstlight/ckpt/model_config.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/gate.h"

namespace firstlight {

/// A named place in an arena; owns nothing.
struct Tensor {
  std::string name;
  DType dtype = DType::bf16;
  std::vector<int64_t> shape;  ///< of this rank's slice
  std::byte* data = nullptr;   ///< aligned to 256 bytes at least
  uint64_t size_bytes = 0;
};

/// Gate numbers: 0 embedding (and all the small tail tensors), 1 + i layer i, n_layers + 1 final norm and lm_head.
inline int n_gates(const ModelConfig& config) { return config.n_layers + 2; }

/// One rank's weights. The table is complete from the start; the bytes of gate g's tensors may be read after
/// ready->wait(g).
struct RankWeights {
  int rank = 0;
  int tp = 1;
  Buffer arena;
  std::map<std::string, Tensor, std::less<>> tensors;  ///< by Hugging Face name; tied: no "lm_head.weight"
  std::unique_ptr<Gates> ready;                        ///< n_gates(config)
  int64_t vocab_begin = 0;                             ///< first vocabulary row in this rank's embedding and lm_head
  int64_t vocab_rows = 0;                              ///< rows stored (padding included): equal on all ranks
};

}  // namespace firstlight
