// SPDX-License-Identifier: Apache-2.0
// Attention of single rows that turns q and k by position itself: no kernel stands between it and the product in front.
// The warp in whose slots a row's own key and value belong puts them among those that it reads, and into the page.
#pragma once
#include "firstlight/ops/attend_keys_cuda.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight::cuda {

/// Queries that are not turned yet; of a lane both halves of a head, which turn together. `angles`: the row's.
template <int kDim>
__device__ __forceinline__ void turn_query(const float* q, const float2* angles, bool there, Query<kDim>& to) {
  constexpr int kHalf = kDim / 32;
  float2 first[kHalf][2], second[kHalf][2];
  float4 turns[kHalf][2];
#pragma unroll
  for (int s = 0; s < kHalf; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = s * 16 + i * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
      first[s][i] = second[s][i] = make_float2(0, 0);
      if (there) first[s][i] = __ldcg(reinterpret_cast<const float2*>(q + at));
      if (there) second[s][i] = __ldcg(reinterpret_cast<const float2*>(q + kDim / 2 + at));
      turns[s][i] = __ldcg(reinterpret_cast<const float4*>(angles + at));
    }
  }
#pragma unroll
  for (int s = 0; s < kHalf; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 turn = turns[s][i];
      const float2 x = rotate(first[s][i].x, second[s][i].x, make_float2(turn.x, turn.y)),
                   y = rotate(first[s][i].y, second[s][i].y, make_float2(turn.z, turn.w));
      split(x.x, y.x, to.high[s][i], to.low[s][i]);
      split(x.y, y.y, to.high[s + kHalf][i], to.low[s + kHalf][i]);
    }
  }
}

/// A row's own key and value: of a lane four neighbours of either half of one of them.
template <int kDim>
class OwnToken {
 public:
  /// Loads them, if they are this warp's, and stores them into their page.
  __device__ __forceinline__ void take(const SinglesParams& p, const Item& item) {
    const int warp = static_cast<int>(threadIdx.x) / 32, page = item.row.position / kPageTokens;
    if (page >= item.end || item.row.position % kPageTokens / 16 != warp) return;
    position_ = item.row.position;
    page_ = page;
    const AttendParams& a = p.attend;
    if (side() > 1) return;
    const float* head = a.q.data + item.row.row * a.q.stride +
                        (int64_t{a.n_heads} + side() * a.kv.n_kv_heads + item.kv_head) * kDim + 4 * quad();
    const float4 first = __ldcg(reinterpret_cast<const float4*>(head)),
                 second = __ldcg(reinterpret_cast<const float4*>(head + kDim / 2));
    float4 turns[2] = {};
    if (side() == 0) {
      const float2* angles = a.angles + int64_t{item.row.angle} * (kDim / 2) + 4 * quad();
      turns[0] = __ldcg(reinterpret_cast<const float4*>(angles));
      turns[1] = __ldcg(reinterpret_cast<const float4*>(angles + 2));
    }
    const auto turned = [](float a, float b, float c, float s) {
      return side() == 0 ? rotate(a, b, make_float2(c, s)) : make_float2(a, b);
    };
    const float2 x = turned(first.x, second.x, turns[0].x, turns[0].y),
                 y = turned(first.y, second.y, turns[0].z, turns[0].w),
                 z = turned(first.z, second.z, turns[1].x, turns[1].y),
                 w = turned(first.w, second.w, turns[1].z, turns[1].w);
    first_ = make_uint2(pack(x.x, y.x), pack(z.x, w.x));
    second_ = make_uint2(pack(x.y, y.y), pack(z.y, w.y));
    if (item.first_head != item.kv_head * p.group) return;  // another block of the group's heads does
    std::byte* to =
        a.kv.data + static_cast<uint64_t>(__ldg(a.pages + item.row.pages + page)) * a.kv.page_stride +
        ((int64_t{side()} * a.kv.n_kv_heads + item.kv_head) * kPageTokens + position_ % kPageTokens) * kDim * 2 +
        8 * quad();
    *reinterpret_cast<uint2*>(to) = first_;
    *reinterpret_cast<uint2*>(to + kDim) = second_;
  }
  /// Puts the key (side 0) or value (1) into the warp's half of `page` in shared memory, if it is theirs.
  __device__ __forceinline__ void put(int of, int page, uint32_t half) const {
    if (page != page_) return;
    if (side() == of) {
      const int slot = position_ % 16;
      const auto at = [&](int piece) {
        return half + static_cast<uint32_t>(slot * kDim * 2 + ((piece ^ (slot & 7)) * 16) + quad() % 2 * 8);
      };
      store(at(quad() / 2), first_);
      store(at(kDim / 16 + quad() / 2), second_);
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ static int side() { return static_cast<int>(threadIdx.x) % 32 / (kDim / 8); }
  __device__ __forceinline__ static int quad() { return static_cast<int>(threadIdx.x) % (kDim / 8); }
  __device__ __forceinline__ static void store(uint32_t at, uint2 x) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(x.x), "r"(x.y) : "memory");
  }

  int position_ = 0, page_ = -1;  ///< page_: -1 if another warp has it
  uint2 first_ = {}, second_ = {};
};

}  // namespace firstlight::cuda
