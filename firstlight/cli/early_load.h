// SPDX-License-Identifier: Apache-2.0
// A load of a rank checkpoint that begins before the driver has said which GPUs there are (0.1 s) and made their
// contexts (0.1 s each): headers are read and the rings filled meanwhile.
#pragma once
#include <future>
#include <memory>
#include <vector>

#include "firstlight/ckpt/load.h"

namespace firstlight::cli {

class EarlyLoad {
 public:
  /// Begins at once, on a thread of its own, for `options.devices`: a guess.
  EarlyLoad(fs::path out, LoadOptions options);
  ~EarlyLoad();  ///< gives the load up, if finish() has not taken it
  EarlyLoad(const EarlyLoad&) = delete;
  EarlyLoad& operator=(const EarlyLoad&) = delete;

  /// The load on these devices, with so many bytes left beside the weights: the one that was begun if the guess was
  /// right, else another. Blocks and throws as load_rank_checkpoint().
  std::unique_ptr<Load> finish(const std::vector<Device>& devices, uint64_t reserve_bytes);

 private:
  fs::path out_;
  LoadOptions options_;
  std::promise<uint64_t> reserve_;
  bool answered_ = false;
  std::future<std::unique_ptr<Load>> begun_;
};

}  // namespace firstlight::cli
