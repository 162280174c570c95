// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: a warp's ring of keys and values in shared memory, its query, and what it has added up.
#pragma once
#include "firstlight/ops/attend_merge_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

/// Running softmax of a warp: divisor and maximum of head lane / 4 (the divisor: of the lane's keys), sums [16 m + {0,
/// 8} + lane / 4] of heads 2 (lane % 4) + {0, 1}.
template <int kDim>
struct Sums {
  float of[kDim / 16][4] = {};
  float maximum = -INFINITY, divisor = 0;
};
template <int kDim>
struct Query {
  uint32_t high[kDim / 16][2], low[kDim / 16][2];
};

/// The keys and values of a warp's 16 slots of some pages ahead, on their way into shared memory.
template <int kDim, int kStages>
struct KeyRing {
  static constexpr int kHalf = 16 * kDim * 2, kBytes = kStages * 2 * kHalf;
  uint32_t at;             ///< in shared memory
  const std::byte* first;  ///< the lane's first piece of the warp's slots, in page 0
  const int32_t* numbers;  ///< of the row's pages
  uint64_t page_stride, to_values, policy = policy_read_once();
  int n_keys, end, held_from, held;  ///< a place of the 32 pages from held_from on

  /// `first_held`: the lane's of the places of item.begin and the 31 pages behind it.
  __device__ KeyRing(const SinglesParams& p, const Item& item, int32_t first_held, uint32_t shared)
      : held_from(item.begin), held(first_held) {
    const KvLayer& kv = p.attend.kv;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    at = shared + static_cast<uint32_t>(warp * kBytes);
    first = kv.data +
            (static_cast<uint64_t>(item.kv_head) * kPageTokens + static_cast<unsigned>(warp) * 16) * kDim * 2 +
            lane * 16;
    to_values = static_cast<uint64_t>(kv.n_kv_heads) * kPageTokens * kDim * 2;
    page_stride = kv.page_stride;
    numbers = p.attend.pages + item.row.pages;
    n_keys = item.row.position + 1;
    end = item.end;
  }
  /// Pages must be asked for in order, from item.begin on.
  __device__ __forceinline__ const std::byte* keys_of(int page) {
    if (page - held_from == 32) {
      const int at = page + static_cast<int>(threadIdx.x) % 32;
      held = at < end ? numbers[at] : 0;
      held_from = page;
    }
    return first + static_cast<uint64_t>(__shfl_sync(0xffffffffu, held, page - held_from)) * page_stride;
  }
  /// The 16-byte pieces of a slot are dealt over the banks, so that eight slots' pieces of one column hit each once;
  /// zeros beyond the visible.
  __device__ __forceinline__ void fetch(const std::byte* from, int page, uint32_t to) const {
    constexpr int kPieces = kDim / 8;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int n_slots = n_keys - page * kPageTokens - warp * 16;
#pragma unroll
    for (int i = 0; i < 16 * kPieces / 32; ++i) {
      const int slot = (i * 32 + lane) / kPieces, piece = lane % kPieces;
      copy_async_once(to + static_cast<uint32_t>(slot * kDim * 2 + ((piece ^ (slot & 7)) * 16)), from + i * 512,
                      slot < n_slots, policy);
    }
  }
  __device__ __forceinline__ uint32_t keys_at(int stage) const { return at + static_cast<uint32_t>(stage * 2 * kHalf); }
  __device__ __forceinline__ uint32_t values_at(int stage) const { return keys_at(stage) + kHalf; }
};

template <int kDim>
__device__ __forceinline__ void load_query(const float* q, bool there, Query<kDim>& to) {
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 x = make_float2(0, 0);
      if (there) x = __ldcg(reinterpret_cast<const float2*>(q + s * 16 + i * 8 + threadIdx.x % 4 * 2));
      split(x.x, x.y, to.high[s][i], to.low[s][i]);
    }
  }
}

/// Where a lane points for two columns of 8 x 8 matrices: slots 0 to 7, then 8 to 15.
template <int kDim>
__device__ __forceinline__ uint32_t matrix_at(uint32_t half, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32, slot = lane / 16 * 8 + lane % 8;
  return half + static_cast<uint32_t>(slot * kDim * 2 + (((column * 2 + lane / 8 % 2) ^ (slot & 7)) * 16));
}

}  // namespace firstlight::cuda
