// SPDX-License-Identifier: Apache-2.0
// Attention of single rows, bound by reading keys and values: each is read once for all heads of its group (up to 8).
// Of every page a warp takes 16 slots, through a ring of its own in shared memory, so that no warp waits for another
// but at a chunk's end.
#pragma once
#include "firstlight/ops/attend_own_cuda.cuh"
#include "firstlight/ops/attend_page_cuda.cuh"

namespace firstlight::cuda {

/// `ready` returns when what this pass computes is there: q, and all keys and values. Those of earlier passes are asked
/// for before.
template <int kDim, int kStages, class Ready>
__device__ void attend_item(const SinglesParams& p, const Item& item, int32_t first_held, uint32_t shared,
                            const Meeting<kDim>& meeting, const Ready& ready) {
  const int slot = static_cast<int>(threadIdx.x) / 32 * 16, head = static_cast<int>(threadIdx.x) % 32 / 4;
  KeyRing<kDim, kStages> ring(p, item, first_held, shared);
  const bool turns = p.attend.angles;  // then no kernel of this pass has written what a row reads
  const int n_olds = turns         ? item.end
                     : p.olds_hold ? max(0, item.row.position + 1 - static_cast<int>(kTiledRows)) / kPageTokens
                                   : 0;
#pragma unroll 1
  for (int stage = 0; stage < kStages; ++stage) {
    const int page = item.begin + stage;
    if (page < item.end) {
      const std::byte* keys = ring.keys_of(page);
      if (page >= n_olds) ready();
      ring.fetch(keys, page, ring.keys_at(stage));
      copy_async_commit();
      ring.fetch(keys + ring.to_values, page, ring.values_at(stage));
    } else {
      copy_async_commit();
    }
    copy_async_commit();
  }
  ready();
  Query<kDim> q;
  OwnToken<kDim> own;
  const float* of_head = p.attend.q.data + item.row.row * p.attend.q.stride + (int64_t{item.first_head} + head) * kDim;
  if (turns) {
    own.take(p, item);
    turn_query<kDim>(of_head, p.attend.angles + int64_t{item.row.angle} * (kDim / 2), head < item.n_heads, q);
  } else {
    load_query<kDim>(of_head, head < item.n_heads, q);
  }
  Sums<kDim> sums;
  Added<kDim> added;
  int chunk = item.first_chunk, chunk_end = item.begin + item.per_chunk;
  for (int page = item.begin, stage = 0; page < item.end; ++page) {
    const int ahead = page + kStages;
    const std::byte* next = ahead < item.end ? ring.keys_of(ahead) : nullptr;
    float scores[2][2];
    copy_async_wait<2 * kStages - 1>();
    __syncwarp();
    if (turns) own.put(0, page, ring.keys_at(stage));
    score<kDim>(q, ring.keys_at(stage), scores);
    __syncwarp();
    if (next) ring.fetch(next, ahead, ring.keys_at(stage));
    copy_async_commit();
    weigh<kDim>(p.attend.scale, ring.n_keys - page * kPageTokens - slot, scores, sums);
    copy_async_wait<2 * kStages - 1>();
    __syncwarp();
    if (turns) own.put(1, page, ring.values_at(stage));
    mix<kDim>(scores, ring.values_at(stage), sums);
    __syncwarp();
    if (next) ring.fetch(next + ring.to_values, ahead, ring.values_at(stage));
    copy_async_commit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (page + 1 == chunk_end || page + 1 == item.end) {
      put_down<kDim>(meeting, sums);
      join_warps<kDim>(p, item, chunk++, meeting, added);
      chunk_end += item.per_chunk;
    }
  }
}

}  // namespace firstlight::cuda
