// SPDX-License-Identifier: Apache-2.0
// What the CUDA back end keeps for a cache of TurboQuant codes: rotations in device memory, and a word about a key or
// value that is not finite.
#pragma once
#include <map>
#include <vector>

#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/quant/turboquant.h"

namespace firstlight::cuda {

turboquant::PageShape page_shape(const KvLayer& kv);

class CodesOfPass {
 public:
  /// The layer's rotations on the GPU; sent when they are new. `recording`: nothing may be sent, so they must be known.
  const turboquant::Signs* signs(const KvLayer& kv, bool recording, cudaStream_t stream);
  /// Where the kernels that make codes of this kind leave a fault.
  struct FaultPlace {
    unsigned long long* first;
    uint32_t* seen;
  };
  FaultPlace fault_place(KvKind kind, cudaStream_t stream);
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

  /// Before attention of rows that stores their keys and values exactly alone. True if addresses have moved.
  bool provide_for_owns(const AttendParams& attend, const RowSet& set, cudaStream_t stream);
  /// Where it leaves those of the next layer for store_owns().
  float* place_of_owns(const AttendCodesParams& codes);
  bool has_owns() const { return owns_.n_layers > 0; }
  /// What there is of them becomes codes; at the latest when the pass ends.
  void store_owns(cudaStream_t stream);
  void forget_owns() { owns_.n_layers = 0; }

  /// For prompts, `held` blocks at a time. Passes of prompts are not recorded, so it may move.
  HopperAttention::SharedPages shared_pages(int held, int head_dim, cudaStream_t stream);

  DeviceScratch sums, parts;

 private:
  struct Rotations {
    std::vector<turboquant::Signs> host;
    DeviceScratch device;
  };
  std::map<const turboquant::Signs*, Rotations> rotations_;  // of a layer
  StoreOwnsParams owns_;                                     // of layers whose codes are yet to be made
  DeviceScratch fault_, own_memory_, shared_pages_, counters_;
  PinnedScratch fault_seen_;
  bool fault_is_clear_ = false;  // both are there and hold none, until a kernel says otherwise
  KvKind kind_ = KvKind::tq4;
};

}  // namespace firstlight::cuda
