// SPDX-License-Identifier: Apache-2.0
// What the CUDA back end keeps for a cache of TurboQuant codes: rotations in device memory, and a word about a key or
// value that is not finite.
#pragma once
#include <map>
#include <vector>

#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/quant/turboquant.h"

namespace firstlight::cuda {

turboquant::PageShape page_shape(const KvLayer& kv);

class CodesOfPass {
 public:
  /// The layer's rotations on the GPU; sent when they are new. `recording`: nothing may be sent, so they must be known.
  const turboquant::Signs* signs(const KvLayer& kv, bool recording, cudaStream_t stream);
  /// Fills in what the kernel needs beside the op's own arguments.
  void prepare(StoreCodesParams& params, bool recording, cudaStream_t stream);
  /// After a pass that is done: throws Error{bad_input} for the first key or value that was not finite.
  void require_finite(cudaStream_t stream);
  /// Of a pass that came to no end.
  void forget_fault(cudaStream_t stream);

  /// What the table of parts was made of in this pass; of another pass it is forgotten.
  struct Plan {
    const RowPart* parts = nullptr;
    const RowOnDevice* rows = nullptr;
    int n_rows = 0, held = 0, exact_units = 0, most_parts = 0;
    bool operator==(const Plan&) const = default;
  } plan;

  /// The rows whose queries are ready, and of what.
  struct Ready {
    const float* q = nullptr;
    int64_t stride = 0;
    int n_heads = 0;
    const RowOnDevice* rows = nullptr;
    int n_rows = 0;
    const turboquant::Signs* signs = nullptr;
    bool operator==(const Ready&) const = default;
  } ready;
  /// What is ready of rows in `out` is stale.
  void written(Matrix<float> out) {
    const float *end = ready.q + ready.n_rows * ready.stride, *out_end = out.data + out.rows * out.stride;
    if (ready.q && out.data && out.data < end && ready.q < out_end) ready = {};
  }

  DeviceScratch sums, parts, queries;

 private:
  struct Rotations {
    std::vector<turboquant::Signs> host;
    DeviceScratch device;
  };
  std::map<const turboquant::Signs*, Rotations> rotations_;  // of a layer
  DeviceScratch fault_;
  PinnedScratch fault_seen_;
  bool fault_is_clear_ = false;  // both are there and hold none, until a kernel says otherwise
  KvKind kind_ = KvKind::tq4;
};

}  // namespace firstlight::cuda
