// SPDX-License-Identifier: Apache-2.0
// Blocks of Hopper's attention over codes that read the same pages: tiles of one sequence, head pairs of one key/value
// head. Each expands its share, and all read all from memory that is small enough to stay in L2: rounds of one page a
// block, in a ring. Where few blocks read many pages, others that have no rows help to expand. They wait for one
// another, so all blocks of a launch must be on the GPU at a time.
#pragma once
#include "firstlight/ops/attend_hopper_codes_pages_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

inline constexpr int kMostTeamTiles = 32;  // of a launch: a lane looks at each

/// What a launch's teams share, in memory.
struct TeamMemory {
  std::byte* pages;    ///< expanded: [blocks, rounds]
  uint32_t* counters;  ///< [blocks, kCounters], zeros between launches
  int rounds;          ///< of a team's ring; 2 to kMostRounds
  int n_tiles;         ///< of the launch: rows of its grid, and then `helpers` times as many that help
  int helpers;         ///< a tile
  static constexpr int kMostRounds = 8, kCounters = 32;

  __device__ __forceinline__ int own_tile() const { return static_cast<int>(blockIdx.y) % n_tiles; }
  __device__ __forceinline__ bool helps() const { return static_cast<int>(blockIdx.y) >= n_tiles; }
};

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t x;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(x));
  return x;
}
/// One thread: until `count` has reached `n`; what was written before that is seen then. Ten seconds behind the team's
/// other blocks are not there, and the launch fails (by an address that is none: where there is a trap the assembler
/// keeps all warpgroups at the same number of registers).
__device__ __forceinline__ void wait_for_count(const uint32_t* count, uint32_t n) {
  const uint64_t begun = nanoseconds();
  for (;;) {
    uint32_t x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(count) : "memory");
    if (x >= n) break;
    if (nanoseconds() - begun > 10'000'000'000u) asm volatile("st.global.u32 [%0], %1;" ::"l"(uint64_t{0}), "r"(0));
  }
}
/// One thread's, behind what all that it was synchronised with have done.
__device__ __forceinline__ void add_to_count(uint32_t* count) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
}

/// A round of a team's ring, as someone comes to it.
struct Round {
  int number = 0, slot = 0, use = 0;
  __device__ __forceinline__ void advance(int rounds) {
    ++number;
    if (++slot == rounds) slot = 0, ++use;
  }
};

inline constexpr int kExpandingWarps = 3, kHelpingWarps = kThreads / 32;  // of a block that has rows, that has none

struct Team {
  int n;                  ///< blocks that have rows
  int n_blocks;           ///< and those that help
  int n_expanders, rank;  ///< warps; the place of this block's first
  int last, n_pages;      ///< of codes, as CodeList of the tile that reads most
  int rounds, n_rounds;   ///< of the ring; in all
  std::byte* pages;
  uint32_t *expanded, *read, *left;  ///< of each round of the ring, warps' items and blocks; of all

  /// A warp's work. `pairs`: of a group that take part.
  __device__ Team(const TeamMemory& memory, const TileOnDevice* tiles, int pairs, int page_bytes) {
    const int lane = static_cast<int>(threadIdx.x) % 32, own = memory.own_tile(), n_tiles = memory.n_tiles;
    const TileOnDevice tile = tiles[min(lane, n_tiles - 1)];
    const int of_own = __shfl_sync(kWholeWarp, tile.pages, own);
    const unsigned others = ~__ballot_sync(kWholeWarp, lane < n_tiles && tile.pages == of_own);
    const unsigned below = others & ((1u << own) - 1), above = others & ~((2u << own) - 1);
    const int first = 32 - __clz(static_cast<int>(below)), end = above ? __ffs(static_cast<int>(above)) - 1 : 32;
    const CodeList list(tile);
    const bool is_mate = lane >= first && lane < end;
    last = __reduce_max_sync(kWholeWarp, is_mate ? list.last : 0);
    n_pages = __reduce_max_sync(kWholeWarp, is_mate ? list.n_steps * kPages : 0);
    const int n_mates = end - first, copy = static_cast<int>(blockIdx.y) / n_tiles,
              place = (own - first) * pairs + static_cast<int>(blockIdx.x) % pairs;
    n = n_mates * pairs;
    n_blocks = n * (1 + memory.helpers);
    n_expanders = n * (kExpandingWarps + memory.helpers * kHelpingWarps);
    rank = copy == 0 ? place * kExpandingWarps : n * kExpandingWarps + ((copy - 1) * n + place) * kHelpingWarps;
    rounds = memory.rounds;
    n_rounds = (n_pages + n - 1) / n;
    const int before = (static_cast<int>(blockIdx.x) / pairs * n_tiles + first) * pairs;  // blocks of other teams
    pages = memory.pages + int64_t{before} * rounds * page_bytes;
    expanded = memory.counters + before * TeamMemory::kCounters;
    read = expanded + TeamMemory::kMostRounds;
    left = read + TeamMemory::kMostRounds;
  }
  /// Until the round's pages are there, of `items` each.
  __device__ __forceinline__ void wait_expanded(const Round& round, int items) const {
    const int pages_of_round = min(n, n_pages - round.number * n);
    wait_for_count(expanded + round.slot, static_cast<uint32_t>((round.use * n + pages_of_round) * items));
  }
  /// Until all have read what lies where the round's pages will.
  __device__ __forceinline__ void wait_read(const Round& round) const {
    if (round.use > 0) wait_for_count(read + round.slot, static_cast<uint32_t>(round.use * n));
  }
  /// One thread of a block, when all of its have done their work: the last one's clears the counters.
  __device__ void leave() const {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(left) : "memory");
    if (before + 1 < static_cast<uint32_t>(n_blocks)) return;
    for (int i = 0; i < TeamMemory::kCounters; ++i) expanded[i] = 0;
  }
};

}  // namespace firstlight::cuda
