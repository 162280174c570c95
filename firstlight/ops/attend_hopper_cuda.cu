// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt on Hopper: a block takes up to 64 rows of two heads of a group, a warpgroup a head, and a warp
// brings the pages they see by tensor maps. Scores of the next page are on their way while a page's weights are made
// and its values mixed (Shah et al., FlashAttention-3). q and the weights are rounded to bf16.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/attend_hopper_pages_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/wgmma_registers_cuda.cuh"

namespace firstlight::cuda {

namespace {

/// A warpgroup: 64 rows of one head, kPages pages at a time. Of lane 4 g + t of warp w: rows 16 w + g and 8 below.
template <int kDim>
struct Rows {
  uint32_t q[kDim / 16][4];
  float sums[kDim / 2] = {};
  float scores[kPages * 32];
  uint32_t weights[kPages * 4][4];
  float maxima[2] = {-INFINITY, -INFINITY}, divisors[2] = {}, shrinks[2];

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static int first_row() {
    return static_cast<int>(threadIdx.x) % kConsumers / 32 * 16 + lane() / 4;
  }

  __device__ __forceinline__ void load_query(const Matrix<const float>& from, const TileOnDevice& tile, int head) {
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row() + i % 2 * 8;
        float2 x = make_float2(0, 0);
        if (row < tile.n_rows) {
          x = *reinterpret_cast<const float2*>(from.data + (int64_t{tile.row} + row) * from.stride + head * kDim +
                                               s * 16 + i / 2 * 8 + lane() % 4 * 2);
        }
        q[s][i] = pack(x.x, x.y);
      }
    }
  }

  /// scores = q keysᵀ, under way; the group's.
  __device__ __forceinline__ void start_scores(uint32_t keys) {
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s)
      wgmma<false>(scores, q[s], matrix_in_shared(keys + s / 4 * kBoxBytes + s % 4 * 32), s > 0);
  }
  /// sums += weights values, under way.
  __device__ __forceinline__ void start_mixing(uint32_t values) {
#pragma unroll
    for (int s = 0; s < kPages * kPageTokens / 16; ++s)
      wgmma<true>(sums, weights[s], columns_in_shared(values + s * 16 * 128, kBoxBytes), true);
  }

  /// Scores become weights, as numbers; visible[half]: of a page's keys, for first_row() + 8 half.
  __device__ __forceinline__ void weigh(float scale, const int (&visible)[kPages][2]) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < 2 * kPages; ++i) all = all && visible[i / 2][i % 2] >= kPageTokens;
    if (__any_sync(0xffffffffu, !all)) {
      const int column = lane() % 4 * 2;
#pragma unroll
      for (int i = 0; i < kPages * 32; ++i) {
        if (i % 32 / 4 * 8 + column + i % 2 >= visible[i / 32][i % 4 / 2]) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = maxima[half];  // finite behind the first page: every row sees the first key
#pragma unroll
      for (int i = 0; i < kPages * 32; ++i) {
        if (i % 4 / 2 == half) top = fmaxf(top, scores[i]);
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      shrinks[half] = power_of_two((maxima[half] - top) * scale);
      maxima[half] = top;
      const float base = top * scale;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kPages * 32; ++i) {
        float& s = scores[i];
        if (i % 4 / 2 == half) sum += s = power_of_two(fmaf(s, scale, -base));
      }
      divisors[half] = divisors[half] * shrinks[half] + sum;
    }
  }
  /// What was mixed so far under the new maxima; and the weights as the operand that they already lie as.
  __device__ __forceinline__ void take_weights() {
    if (__any_sync(0xffffffffu, shrinks[0] != 1 || shrinks[1] != 1)) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) sums[i] *= shrinks[i % 4 / 2];
    }
#pragma unroll
    for (int s = 0; s < kPages * 4; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[s][i] = pack(scores[8 * s + 2 * i], scores[8 * s + 2 * i + 1]);
    }
  }

  __device__ __forceinline__ void store(const AttendParams& p, const TileOnDevice& tile, int head) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float divisor = divisors[half];
      divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
      divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
      const int within = first_row() + half * 8;
      if (within >= tile.n_rows) continue;
      const float scale = 1 / divisor;
      const int64_t row = int64_t{tile.row} + within;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float a = sums[4 * n + 2 * half] * scale, b = sums[4 * n + 2 * half + 1] * scale;
        const int64_t column = int64_t{head} * kDim + n * 8 + lane() % 4 * 2;
        *reinterpret_cast<float2*>(p.out.data + row * p.out.stride + column) = make_float2(a, b);
        if (p.twin) *reinterpret_cast<uint32_t*>(p.twin + row * p.out.cols + column) = pack(a, b);
      }
    }
  }
};

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

/// A warpgroup's walk over the pages.
template <int kDim>
struct Walk {
  const AttendParams& p;
  Ring<kDim>& ring;
  const uint32_t pages;
  const PageList& list;
  const int n_keys, position;  ///< of the tile; of first_row()
  Rows<kDim>& rows;

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
      const Place<kDim> place(step * kPages + i);
      ring.keys_full[place.stage].wait(place.parity);
    }
    wait_for_turn();
    wgmma_fence();
    rows.start_scores(Place<kDim>(step * kPages).keys(pages));
    wgmma_commit();
  }
  template <bool kLast>
  __device__ __forceinline__ void start_mixing(int step) {
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int item = step * kPages + i, n_slots = n_keys - list.last * kPageTokens;
      const Place<kDim> place(item);
      ring.values_full[place.stage].wait(place.parity);
      if (kLast && item >= list.n - 1 && n_slots < kPageTokens) clear_slots<kDim>(place.values(pages), n_slots);
    }
    wgmma_fence();
    rows.start_mixing(Place<kDim>(step * kPages).values(pages));
    wgmma_commit();
  }
  __device__ __forceinline__ void weigh(int step) {
#pragma unroll
    for (int i = 0; i < kPages * 32; ++i) asm volatile("" : "+f"(rows.scores[i])::"memory");
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      if (Rows<kDim>::lane() == 0) ring.keys_empty[Place<kDim>(step * kPages + i).stage].arrive();
    }
    int visible[kPages][2];
#pragma unroll
    for (int i = 0; i < 2 * kPages; ++i)
      visible[i / 2][i % 2] = list.visible(step * kPages + i / 2, position + i % 2 * 8);
    rows.weigh(p.scale, visible);
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
      if (Rows<kDim>::lane() == 0) ring.values_empty[Place<kDim>(step * kPages + i).stage].arrive();
    }
  }
  __device__ __forceinline__ void run() {
    const int n_steps = (list.n + kPages - 1) / kPages;
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

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) attend_hopper_kernel(const __grid_constant__ HopperParams params) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte dynamic[];
  __shared__ alignas(16) std::byte memory[sizeof(Ring<kDim>)];
  Ring<kDim>& ring = *reinterpret_cast<Ring<kDim>*>(memory);
  const uint32_t pages = (shared_address(dynamic) + 1023) & ~1023u;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Ring<kDim>::kStages; ++s) {
      ring.keys_full[s].init(1);
      ring.values_full[s].init(1);
      ring.keys_empty[s].init(kHeads * 4);
      ring.values_empty[s].init(kHeads * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  wait_for_predecessor();
  let_successor_start();
  const AttendParams& p = params.attend;
  const TileOnDevice tile = params.tiles[blockIdx.y];
  const int group = p.n_heads / p.kv.n_kv_heads, kv_head = static_cast<int>(blockIdx.x) / params.head_pairs;
  const int in_group =
      static_cast<int>(blockIdx.x) % params.head_pairs * kHeads + static_cast<int>(threadIdx.x) / kConsumers;
  const PageList list(tile);
  if (threadIdx.x >= kHeads * kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kHeads * kConsumers) {
      asm volatile("fence.proxy.async;" ::: "memory");  // pages were written by ordinary stores
      fetch_pages<kDim>(params, tile, kv_head, list, (list.n + kPages - 1) / kPages * kPages, pages, ring);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int head = kv_head * group + min(in_group, group - 1);  // of an odd group's last pair one computes in vain
    Rows<kDim> rows;
    rows.load_query(p.q, tile, head);
    Walk<kDim>{p, ring, pages, list, tile.position + tile.n_rows, tile.position + Rows<kDim>::first_row(), rows}.run();
    if (in_group < group) rows.store(p, tile, head);
  }
#endif
}

template <int kDim>
void start(const HopperParams& params, int n_tiles, cudaStream_t stream) {
  constexpr int kShared = Ring<kDim>::kStages * 2 * Ring<kDim>::kBytes + 1024;
  const auto kernel = attend_hopper_kernel<kDim>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory of attention");
  launch("attention of tiles", kernel,
         dim3(static_cast<unsigned>(params.attend.kv.n_kv_heads * params.head_pairs), static_cast<unsigned>(n_tiles)),
         kThreads, kShared, stream, params);
}

int pairs_of(const AttendParams& p) { return ceil_div(p.n_heads / p.kv.n_kv_heads, kHeads); }

}  // namespace

void HopperAttention::attend(const AttendParams& p, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream) const {
  const auto row_bytes = static_cast<uint64_t>(p.kv.head_dim * 2);
  if (p.kv.page_stride % row_bytes != 0)
    throw Error(ErrorKind::bug,
                str("pages of heads of ", p.kv.head_dim, " at multiples of ", p.kv.page_stride, " bytes"));
  // Of all memory from kv.data on: how many pages there are the kernel need not know.
  const MappedPages pages{
      maps_.of(p.kv.data, int64_t{1} << 31, p.kv.head_dim, kPageTokens, CU_TENSOR_MAP_L2_PROMOTION_L2_256B), p.pages,
      static_cast<int>(p.kv.page_stride / row_bytes)};
  const HopperParams params{pages, p, tiles, pairs_of(p)};
  p.kv.head_dim == 64 ? start<64>(params, n_tiles, stream) : start<128>(params, n_tiles, stream);
}

}  // namespace firstlight::cuda
