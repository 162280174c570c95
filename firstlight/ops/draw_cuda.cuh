// SPDX-License-Identifier: Apache-2.0
// What a pass's draws need on the device, at fixed addresses, sent in one copy when the pass begins.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/sampling.h"

namespace firstlight::cuda {

/// A Draw as the kernel takes it.
struct alignas(16) DrawOnDevice {
  double powers;          ///< of sampling::Scale; 0: greedy
  double top_p;           ///< 1: off
  uint64_t random;        ///< random_bits()
  uint64_t least_weight;  ///< of min-p
  int32_t top_k;          ///< 0: off
  float penalty;          ///< 1: off
  int32_t history, n_history;
};

class DrawTables {
 public:
  /// True if the device addresses are new.
  bool send(std::span<const Draw> draws, cudaStream_t stream);
  const DrawOnDevice* draws() const { return device_.as<DrawOnDevice>(); }
  const int32_t* history() const { return reinterpret_cast<const int32_t*>(draws() + row_capacity_); }
  size_t n_draws() const { return n_draws_; }

 private:
  size_t row_capacity_ = 0, id_capacity_ = 0, n_draws_ = 0;
  DeviceScratch device_;
  PinnedScratch host_;
};

/// ids[i] = what draws[i] says of row i of logits [n_rows, vocab_size], which penalties change in place.
void draw_rows(float* logits, int vocab_size, int n_rows, const DrawOnDevice* draws, const int32_t* history, int* ids,
               cudaStream_t stream);

}  // namespace firstlight::cuda
