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
  /// Begin to load cuBLASLt at once, on a thread of its own; else at the first product of more than 8 rows.
  bool load_cublaslt = true;
  /// Passes of up to 8 single rows are one resident kernel as far as they can be, not a kernel an op, from the first
  /// one on. There, and between products that are own kernels with tensor cores, a norm is part of the products around
  /// it: nothing else of the pass may read what rms_norm() wrote, and its scale is applied to their sums, so that last
  /// bits differ from those of the ops one by one.
  bool resident = true;
  std::string why_not_resident = "not asked for";  ///< for name(), where `resident` is false
  /// Elements of the smallest weight that a layer multiplies with. Where even that one is large (24 MiB of bf16) and
  /// the GPU has kernels for it, a resident kernel takes 2 rows at most: Llama-3.1-8B's shapes, 2 / 3 / 4 /
  /// 8 x 512 tokens: 3.95 / 4.11 / 4.19 / 5.00 ms as a resident kernel, 4.01 / 4.00 / 3.91 / 3.98 as a graph of kernels
  /// that use tensor cores (H200).
  int64_t least_weight = 0;
  /// Ops, this one among them, whose passes may run on the GPU at the same time. Attention's blocks wait for one
  /// another, so each launches only its share of what the GPU holds: grids that were half there would wait for ever.
  int n_sharing = 1;
  /// Where ops are queued; null: on one of their own. Outlives the ops. Others may queue there what reads and writes
  /// matrices of a pass, but not what rms_norm(), gate_up_silu() or attend() wrote and a product has yet to read; and
  /// with `resident` nothing at all, since products may wait for the op behind them.
  const Stream* stream = nullptr;
};

/// Queued on one stream of `device`; matrices and weights lie there. Products of up to 8 rows are own kernels, exact to
/// about 2^-17 of each term; above, activations are rounded to bf16: own kernels to 32 rows where weights are large (24
/// MiB; Hopper, k a multiple of 8), else cuBLASLt (f32 weights: own kernels, all in f32). Passes over codes, and all
/// with `resident` false, multiply large weights so from the first row on, and a model of large weights alone
/// (least_weight) from the third. Within 1–8 rows (there: 1–2) a row's bits depend on the row alone and on whether its
/// pass is one that can be recorded; within 9–32 (3–32) those of own kernels' products on the row alone; over codes
/// also on how many parts the batch cuts it into. One thread at a time. Throws Error{unsupported} in a build without
/// CUDA, Error{device} if the driver fails.
std::unique_ptr<Ops> make_cuda_ops(Device device, const CudaOpsOptions& options = {});

}  // namespace firstlight
