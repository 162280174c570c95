// SPDX-License-Identifier: Apache-2.0
// What the warps of a resident kernel share: the ring as they see it, and the block's other shared memory.
#pragma once
#include "firstlight/ops/resident_cuda.cuh"
#include "firstlight/ops/resident_ring_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kStageSteps = 4;  ///< of 32 of k, of a warp

/// The block's shared memory beside the ring.
struct ResidentShared {
  MemoryBarrier full[kMostStages], empty[kMostStages];
  ResidentInstruction instructions[2], fetched;  ///< the consumers', this one and the next; the producer's
  float norm_parts[kMatvecRows][32];
  float sums[2][kResidentWarps][16 * kMatvecRows];  ///< of a unit: [part][warp][x row][w row]
};

struct Ring {
  std::byte* stages;
  std::byte* meeting;  ///< behind the stages: where attention's warps meet
  ResidentShared& shared;
  int n_stages;
  RingPosition at;
  __device__ std::byte* stage(int i) const { return stages + i * kStageBytes; }
  __device__ std::byte* stage() const { return stage(at.stage); }
  __device__ __forceinline__ void advance() { at.advance(n_stages); }
};

}  // namespace firstlight::cuda
