// SPDX-License-Identifier: Apache-2.0
// What the warps of a resident kernel share: the ring as they see it, and the block's other shared memory.
#pragma once
#include "firstlight/ops/resident_cuda.cuh"
#include "firstlight/ops/resident_ring_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kPartSteps = 4;  ///< of 32 of k, of a warp
/// This instruction's, the next one's, and one between the next one's writer and the last one's readers: two barriers.
inline constexpr int kInstructionSlots = 3;

/// Units whose stages may be in the ring at once, and the word that there are no more: a unit has a stage at least.
inline constexpr int kUnitSlots = 8;
inline constexpr int kNoUnit = -1;
/// Units whose sums are there and whose results are not.
inline constexpr int kSumsSlots = 4;

/// The block's shared memory beside the ring.
struct ResidentShared {
  MemoryBarrier full[kMostStages], empty[kMostStages];
  MemoryBarrier unit_full[kUnitSlots], unit_empty[kUnitSlots];
  MemoryBarrier sums_full[kSumsSlots], sums_empty[kSumsSlots];  ///< of all threads: racecheck follows no others
  int units[kUnitSlots];  ///< on their way from the producer to the others; behind a product's last: none
  ResidentInstruction instructions[kInstructionSlots], fetched;  ///< the consumers'; the producer's
  ResidentInstruction finishing[2];                              ///< the finishers'
  float scales[kMatvecRows];                                     ///< of x's rows
};

/// Where a product's warps leave their sums for the finishers: of kSumsSlots units in turn [warp][x row][w row].
inline constexpr int kSumsPitch = 20;  ///< of an x row: 16 sums, and each lane's in a bank of its own
inline constexpr int kSumsOfWarp = kSumsPitch * kMatvecRows;
inline constexpr int kSumsBytes = kSumsSlots * kResidentWarps * kSumsOfWarp * 4;

struct Ring {
  std::byte* stages;
  std::byte* meeting;  ///< behind the stages: a product's sums, or where warps of attention meet
  ResidentShared& shared;
  int n_stages;
  RingPosition at, unit_at, sums_at;
  __device__ std::byte* stage(int i) const { return stages + i * kStageBytes; }
  __device__ std::byte* stage() const { return stage(at.stage); }
  /// A warp's sums of the unit at hand.
  __device__ float* sums(int warp) const {
    return reinterpret_cast<float*>(meeting) + (sums_at.stage * kResidentWarps + warp) * kSumsOfWarp;
  }
  /// The producer's word to the consumers; one lane's.
  __device__ __forceinline__ void put_unit(int unit) {
    shared.unit_empty[unit_at.stage].wait(unit_at.parity ^ 1);
    shared.units[unit_at.stage] = unit;
    shared.unit_full[unit_at.stage].arrive();
  }
  /// A consumer's or finisher's.
  __device__ __forceinline__ int take_unit() {
    shared.unit_full[unit_at.stage].wait(unit_at.parity);
    const int unit = shared.units[unit_at.stage];
    shared.unit_empty[unit_at.stage].arrive();
    unit_at.advance(kUnitSlots);
    return unit;
  }
  __device__ __forceinline__ void advance() { at.advance(n_stages); }
};

}  // namespace firstlight::cuda
