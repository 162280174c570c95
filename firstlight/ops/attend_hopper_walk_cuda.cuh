// SPDX-License-Identifier: Apache-2.0
// How a warpgroup of Hopper's attention goes over the pages in the ring: scores of the next two pages are on their way
// while weights are made of the last two's.
#pragma once
#include "firstlight/ops/attend_hopper_rows_cuda.cuh"

namespace firstlight::cuda {

/// A warpgroup clears the slots of a page that no row sees: what lies there may not be a number, and has weight 0.
template <int kDim>
__device__ void clear_slots(uint32_t values, int n_slots) {
  for (int i = static_cast<int>(threadIdx.x) % kConsumers; i < (kPageTokens - n_slots) * 8 * (kDim / 64);
       i += kConsumers) {
    const int slot = n_slots + i / 8 % (kPageTokens - n_slots), box = i / 8 / (kPageTokens - n_slots);
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(values + box * kBoxBytes + slot * 128 + i % 8 * 16),
                 "r"(0)
                 : "memory");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(threadIdx.x) / kConsumers + 1), "n"(kConsumers) : "memory");
}

/// A warpgroup's walk over the pages of a list (a PageList, or its like).
template <int kDim, class List>
struct Walk {
  const float scale;
  Ring<kDim>& ring;
  const uint32_t pages;
  const List& list;
  const int n_keys, position;  ///< of the tile; of first_row()
  Rows<kDim>& rows;

  /// Of the step's page i.
  __device__ __forceinline__ Place<kDim> place(int step, int i) const {
    return Place<kDim>(list.first_item + step * kPages + i);
  }
  /// The warpgroups' products take turns, so that one weighs while the other multiplies.
  __device__ static __forceinline__ void wait_for_turn() {
    asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(threadIdx.x) / kConsumers + 3), "n"(2 * kConsumers)
                 : "memory");
  }
  __device__ static __forceinline__ void give_turn() {
    asm volatile("bar.arrive %0, %1;" ::"r"(4 - static_cast<int>(threadIdx.x) / kConsumers), "n"(2 * kConsumers)
                 : "memory");
  }
  __device__ __forceinline__ void start_scores(int step) {
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const Place<kDim> at = place(step, i);
      ring.keys_full[at.stage].wait(at.parity);
    }
    wait_for_turn();
    wgmma_fence();
    rows.start_scores(place(step, 0).keys(pages));
    wgmma_commit();
  }
  template <bool kLast>
  __device__ __forceinline__ void start_mixing(int step) {
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int n_slots = n_keys - list.last * kPageTokens;
      const Place<kDim> at = place(step, i);
      ring.values_full[at.stage].wait(at.parity);
      if (kLast && list.page(step * kPages + i) >= list.last && n_slots < kPageTokens)
        clear_slots<kDim>(at.values(pages), n_slots);
    }
    wgmma_fence();
    rows.start_mixing(place(step, 0).values(pages));
    wgmma_commit();
  }
  __device__ __forceinline__ void weigh(int step) {
#pragma unroll
    for (int i = 0; i < kPages * 32; ++i) asm volatile("" : "+f"(rows.scores[i])::"memory");
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      if (Rows<kDim>::lane() == 0) ring.keys_empty[place(step, i).stage].arrive();
    }
    int visible[kPages][2];
#pragma unroll
    for (int i = 0; i < 2 * kPages; ++i)
      visible[i / 2][i % 2] = list.visible(step * kPages + i / 2, position + i % 2 * 8);
    rows.weigh(scale, visible);
  }
  __device__ __forceinline__ void end_mixing(int step) {
    // Never waits: the sum is positive. The assembler moves the wait behind this ahead of all arithmetic that needs
    // none of what is waited for, but not over a branch: and the weights are to be made while values are mixed.
    asm volatile(
        "{\n"
        ".reg .pred never;\n"
        "setp.eq.f32 never, %0, 0fBF800000;\n"
        "again:\n"
        "@!never bra on;\n"
        "nanosleep.u32 100;\n"
        "bra again;\n"
        "on:\n"
        "}" ::"f"(rows.divisors[0] + rows.divisors[1]));
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) asm volatile("" : "+f"(rows.sums[i])::"memory");
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      if (Rows<kDim>::lane() == 0) ring.values_empty[place(step, i).stage].arrive();
    }
  }
  __device__ __forceinline__ void run() {
    const int n_steps = list.n_steps;
    const bool is_second = threadIdx.x >= kConsumers;
    if (is_second) give_turn();
    start_scores(0);
    give_turn();
    wgmma_wait<0>();
    weigh(0);
    rows.take_weights();
    for (int step = 1; step < n_steps; ++step) {
      start_scores(step);
      start_mixing<false>(step - 1);
      give_turn();
      wgmma_wait<1>();
      weigh(step);
      end_mixing(step - 1);
      rows.take_weights();
    }
    wait_for_turn();
    start_mixing<true>(n_steps - 1);
    if (!is_second) give_turn();
    end_mixing(n_steps - 1);
  }
};

}  // namespace firstlight::cuda
