// SPDX-License-Identifier: Apache-2.0
// Where a warp of steps 4 and 5 finds its next page: in global memory, or in a ring of its own in shared memory.
#pragma once
#include "bench/kernels/tq4_ladder.cuh"
#include "firstlight/ops/memory_barrier_cuda.cuh"

namespace firstlight::ladder {

/// A part's pages, asked for by number; their numbers are known 32 ahead, one a lane.
class PageNumbers {
 public:
  __device__ PageNumbers(const Params& p, const Part& part) : p_(p), part_(part), at_(part.part) {}
  /// Null behind the last one. All lanes call.
  __device__ const uint8_t* next() {
    if (at_ >= p_.n_pages) return nullptr;
    if (i_ % 32 == 0) {
      const int ahead = at_ + lane_id() * p_.n_parts;
      if (ahead < p_.n_pages) number_ = part_.number(p_, ahead);
    }
    at_ += p_.n_parts;
    return part_.page(p_, __shfl_sync(kAll, number_, i_++ % 32));
  }

 private:
  const Params& p_;
  const Part& part_;
  int at_, i_ = 0, number_ = 0;
};

struct GlobalPages {
  static constexpr int kBlocks = 4, kSharedBytes = 0;
  PageNumbers numbers;
  __device__ GlobalPages(const Params& p, const Part& part, uint8_t*) : numbers(p, part) {}
  __device__ const uint8_t* next() { return numbers.next(); }
  __device__ void release(int) {}
};

class RingPages {
 public:
  static constexpr int kSlots = 2, kBlocks = 3, kBarriers = 128;
  static constexpr int kNever = 0x7fffffff;
  static constexpr int kSharedBytes = kBarriers + kBlockWarps * kSlots * kShape.bytes();

  __device__ RingPages(const Params& p, const Part& part, uint8_t* shared) : numbers_(p, part) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    barriers_ = reinterpret_cast<cuda::MemoryBarrier*>(shared) + warp * kSlots;
    slots_ = shared + kBarriers + warp * kSlots * kShape.bytes();
    if (lane_id() == 0) {
      for (int i = 0; i < kSlots; ++i) barriers_[i].init(1);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    for (int i = 0; i < kSlots; ++i) ask(i);
  }
  __device__ const uint8_t* next() {
    barriers_[slot_].wait(parity_);
    return slots_ + slot_ * kShape.bytes();
  }
  /// The page has been read, and makes room for the one kSlots on. `seen` depends on what was read, and is not kNever:
  /// a copy asked for while loads are under way might overtake them.
  __device__ void release(int seen) {
    if (__any_sync(kAll, seen != kNever)) ask(slot_);  // always, which the compiler does not know
    if (++slot_ == kSlots) slot_ = 0, parity_ ^= 1u;
  }

 private:
  __device__ void ask(int slot) {
    const uint8_t* page = numbers_.next();
    if (!page || lane_id() != 0) return;
    barriers_[slot].arrive_and_expect(kShape.bytes());
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     cuda::shared_address(slots_ + slot * kShape.bytes())),
                 "l"(page), "r"(kShape.bytes()), "r"(cuda::shared_address(&barriers_[slot]))
                 : "memory");
  }

  PageNumbers numbers_;
  cuda::MemoryBarrier* barriers_;
  uint8_t* slots_;
  int slot_ = 0;
  unsigned parity_ = 0;
};

}  // namespace firstlight::ladder
