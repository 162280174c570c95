// SPDX-License-Identifier: Apache-2.0
// The CUDA back end, as those see it who may not see CUDA's headers.
#pragma once
#include <memory>
#include <string>

#include "firstlight/device/device.h"
#include "firstlight/device/stream.h"
#include "firstlight/ops/ops.h"

namespace firstlight {

struct CudaOpsOptions {
  /// Record passes of single rows at their second coming and replay them from then on. Only for a caller whose passes
  /// of one shape make the same calls with the same addresses, and nothing else between begin() and end() but what is
  /// recorded with `stream` (so not where ranks exchange sums through the host).
  bool graphs = true;
  /// Begin to load cuBLASLt at once, on a thread of its own; else at the first product that needs it.
  bool load_cublaslt = true;
  /// A norm between products that are own kernels is part of them, and what gate_up_silu() gives goes to the product
  /// behind it alone: nothing else of the pass may read what these two write, and a norm's scale is applied to sums, so
  /// that last bits differ from those of the ops one by one. Not where ranks add their sums up in front of the norm.
  bool fold_norms = true;
  /// Not those with Hopper's own instructions, as on newer GPUs: for tests of the others.
  bool any_gpu = false;
  /// Ops, this one among them, whose passes may run on the GPU at the same time. Attention's blocks wait for one
  /// another, so each launches only its share of what the GPU holds: grids that were half there would wait for ever.
  int n_sharing = 1;
  /// Where ops are queued; null: on one of their own. Outlives the ops. Others may queue there what reads and writes
  /// matrices of a pass, but not what rms_norm(), gate_up_silu() or attend() wrote and a product has yet to read; and
  /// with `fold_norms` nothing at all, since products wait for the op behind them.
  const Stream* stream = nullptr;
};

/// Queued on one stream of `device`; matrices and weights lie there. Products with bf16 weights round activations to
/// bf16. Up to 64 rows they are own kernels (k a multiple of 8), and a row's bits depend on the row alone (over codes
/// also on how many parts the batch cuts it into); above they are cuBLASLt's. f32 weights: own kernels, all in f32. One
/// thread at a time. Throws Error{unsupported} in a build without CUDA, Error{device} if the driver fails.
std::unique_ptr<Ops> make_cuda_ops(Device device, const CudaOpsOptions& options = {});

}  // namespace firstlight
