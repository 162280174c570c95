// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: how a row's keys are cut into chunks, a question of its own length alone, and which block
// takes which chunks: a question of the whole batch, which no bit depends on.
#pragma once
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/attend_sections_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

inline constexpr int kSinglesWarps = 4;  ///< of a block, which works on an item together

/// a / b for 0 ≤ a < 2²³ and b > 0: 10 instructions, where the compiler's own division takes 30. Attention divides two
/// dozen times before its first load.
__device__ __forceinline__ int quotient(int a, int b) {
  const int q = __float2int_rz(__fdividef(static_cast<float>(a), static_cast<float>(b))), rest = a - q * b;
  return q + static_cast<int>(rest >= b) - static_cast<int>(rest < 0);
}
__device__ __forceinline__ int ceil_quotient(int a, int b) { return quotient(a + b - 1, b); }

/// What a block works on: consecutive chunks of one row, for some heads of one group.
struct Item {
  RowOnDevice row;
  int index;       ///< of the row in its set
  int head_block;  ///< of n_head_blocks
  int kv_head, first_head, n_heads;
  int per_chunk;    ///< pages
  int per_section;  ///< chunks
  int n_chunks;     ///< of the row
  int first_chunk, end_chunk;
  int begin, end;  ///< pages
};

/// An item as it lies ready: with the places of its first pages, which a warp's lanes load beside it, a trip to L2 less
/// before keys are asked for.
struct ReadyItem {
  Item item;
  int32_t pages[32];  ///< from item.begin on
};

/// A row's chunks and sections follow from its own length (and the GPU and the model); its items also from the whole
/// batch.
struct Cut {
  int n_pages, per_chunk, n_chunks, per_section, per_item, n_items;  ///< pages; chunks a section and an item
  __device__ Cut(const SinglesParams& p, int position, int pages_each) {
    n_pages = position / kPageTokens + 1;
    per_chunk =
        max(n_pages > kSections * kLeastPages ? 2 * kLeastPages : kLeastPages, ceil_quotient(n_pages, p.most_chunks));
    n_chunks = ceil_quotient(n_pages, per_chunk);
    per_section = (n_chunks + kSections - 1) / kSections;
    per_item = ceil_quotient(pages_each, per_chunk);
    n_items = ceil_quotient(n_chunks, per_item);
  }
  /// Whether one item has all of the chunks from `first` to `last`.
  __device__ bool is_in_one_item(int first, int last) const {
    return quotient(first, per_item) == quotient(last, per_item);
  }
};

/// What a launch has to do, the same in every warp that asks; a warp's work. Pages for each block: so many that the
/// blocks that the GPU holds have about the same to do; up to a quarter more, if that spares a second round.
struct AttendPlan : SinglesPlan {
  __device__ __forceinline__ explicit AttendPlan(const SinglesParams& p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, held = max(1, quotient(p.n_blocks, p.head_blocks));
    if (p.n_rows == 1) {
      const int position = p.rows[0].position;
      each = ceil_quotient(position / kPageTokens + 1, held);
      n_items = Cut(p, position, each).n_items * p.head_blocks;
      splits_rows = n_items > p.head_blocks;
      return;
    }
    unsigned n_pages = 0;
    for (int r = lane; r < p.n_rows; r += 32) n_pages += static_cast<unsigned>(p.rows[r].position / kPageTokens + 1);
    each = max(1, ceil_quotient(static_cast<int>(__reduce_add_sync(0xffffffffu, n_pages)), held));
    int n = items_of_rows(p, each);
    const int least = each, step = max(1, least / 8);
    for (int more = least + step; n > held && more <= least + max(1, least / 4); more += step) {
      const int fewer = items_of_rows(p, more);
      if (fewer <= held) each = more, n = fewer;
    }
    n_items = n * p.head_blocks;
    splits_rows = n > p.n_rows;
  }

 private:
  __device__ __forceinline__ static int items_of_rows(const SinglesParams& p, int each) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    unsigned n = 0;
    for (int r = lane; r < p.n_rows; r += 32) n += static_cast<unsigned>(Cut(p, p.rows[r].position, each).n_items);
    return static_cast<int>(__reduce_add_sync(0xffffffffu, n));
  }
};

/// Heads of a row that a block takes together.
__device__ __forceinline__ void set_heads(const SinglesParams& p, int head_block, Item& item) {
  item.head_block = head_block;
  item.kv_head = quotient(head_block, p.of_group);
  const int in_group = (head_block - item.kv_head * p.of_group) * kHeadsAtOnce;
  item.first_head = item.kv_head * p.group + in_group;
  item.n_heads = min(kHeadsAtOnce, p.group - in_group);
}

/// Item `number` of the plan's, rows in order. A warp's work.
__device__ __forceinline__ void find_item(const SinglesParams& p, int each, int number, Item& item) {
  const int lane = static_cast<int>(threadIdx.x) % 32, n_blocks = p.head_blocks;
  const int wanted = quotient(number, n_blocks);
  int at = wanted;
  item.index = 0;
  for (int first = 0, before = 0; p.n_rows > 1 && first < p.n_rows; first += 32) {
    const int n = first + lane < p.n_rows ? Cut(p, p.rows[first + lane].position, each).n_items : 0;
    int up_to = n;  // with this row's
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, up_to, step);
      if (lane >= step) up_to += other;
    }
    const int total = __shfl_sync(0xffffffffu, up_to, 31);
    if (wanted >= before + total) {
      before += total;
      continue;
    }
    const int which = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, before + up_to > wanted))) - 1;
    at = wanted - before - __shfl_sync(0xffffffffu, up_to - n, which);
    item.index = first + which;
    break;
  }
  item.row = p.rows[item.index];
  const Cut cut(p, item.row.position, each);
  item.per_chunk = cut.per_chunk;
  item.per_section = cut.per_section;
  item.n_chunks = cut.n_chunks;
  item.first_chunk = at * cut.per_item;
  item.end_chunk = min(cut.n_chunks, item.first_chunk + cut.per_item);
  item.begin = item.first_chunk * cut.per_chunk;
  item.end = min(cut.n_pages, item.end_chunk * cut.per_chunk);
  set_heads(p, number - wanted * n_blocks, item);
}

/// Where the row's chunks of these heads put down their sums: pieces_of(p) for each chunk.
__device__ __forceinline__ ChunkPiece* pieces_of(const SinglesParams& p, const Item& item) {
  const int64_t which = int64_t{item.index} * p.head_blocks + item.head_block;
  return p.partials + which * p.n_chunks * p.heads * (p.attend.kv.head_dim / 4);
}

}  // namespace firstlight::cuda
