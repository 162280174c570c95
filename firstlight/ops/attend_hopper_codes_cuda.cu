// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt over TurboQuant codes on Hopper: as over bf16 pages (attend_hopper_cuda.cu), from which the
// exact pages come; then the sums are rotated and the pages of codes follow, each expanded once for all blocks that
// read it (attend_hopper_team_cuda.cuh).
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/attend_hopper_expand_cuda.cuh"
#include "firstlight/ops/attend_hopper_park_cuda.cuh"
#include "firstlight/ops/attend_hopper_rotate_cuda.cuh"
#include "firstlight/ops/attend_hopper_team_cuda.cuh"
#include "firstlight/ops/attend_hopper_walk_cuda.cuh"

namespace firstlight::cuda {

namespace {

struct HopperCodesParams {
  MappedPages exact;
  AttendCodesParams codes;
  const TileOnDevice* tiles;  ///< of the launch
  int head_pairs;             ///< of a group
  int first_pair;             ///< of all groups', which the launch begins with
  int team_pairs;             ///< of a group, that share what is expanded
  TeamMemory team;
};

/// A thread's. 232 and 40: 254 us behind 15,872 keys where these take 251; 240 and 24: 317, because expanding spills.
[[maybe_unused]] constexpr int kConsumerRegisters = 224, kBringerRegisters = 56;  // Hopper's alone

/// The third warpgroup's first warp: one thread brings pages to the ring.
template <int kDim>
struct Bringer {
  using Page = ExpandedPage<kDim>;
  static constexpr int kBehind = 2;  ///< pages: a look at copies that were asked for so long ago does not wait
  const HopperCodesParams& params;
  const TileOnDevice& tile;
  const int kv_head;
  const uint32_t pages;
  Ring<kDim>& ring;

  __device__ __forceinline__ void bring_exact(const ExactList& list) const {
    const int to_values = params.codes.attend.kv.n_kv_heads * kPageTokens;
    for (int i = 0; i < list.n_steps * kPages; ++i) {
      const int row = params.exact.numbers[tile.pages + list.fetched(i)] * params.exact.rows + kv_head * kPageTokens;
      fetch_page(params.exact.map, row, to_values, i, pages, ring);
    }
  }
  __device__ __forceinline__ static void copy(uint32_t to, const std::byte* from, MemoryBarrier& full) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(kPageBytes), "r"(shared_address(&full))
                 : "memory");
  }
  __device__ __forceinline__ void bring_page(const std::byte* from, int item) const {
    const Place<kDim> place(item);
    if (item >= Ring<kDim>::kStages) ring.keys_empty[place.stage].wait(place.parity ^ 1);
    ring.keys_full[place.stage].arrive_and_expect(Page::kSideBytes);
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i)
      copy(place.keys(pages) + i * kBoxBytes, from + i * kPageBytes, ring.keys_full[place.stage]);
    if (item >= Ring<kDim>::kStages) ring.values_empty[place.stage].wait(place.parity ^ 1);
    ring.values_full[place.stage].arrive_and_expect(Page::kSideBytes);
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i)
      copy(place.values(pages) + i * kBoxBytes, from + Page::kSideBytes + i * kPageBytes,
           ring.values_full[place.stage]);
  }
  /// Until the page's copies have ended.
  __device__ __forceinline__ void wait_brought(int item) const {
    const Place<kDim> place(item);
    ring.keys_full[place.stage].wait(place.parity);
    ring.values_full[place.stage].wait(place.parity);
  }
  __device__ __forceinline__ void bring_codes(const CodeList& list, int first_item, const Team& team) const {
    const int n = list.n_steps * kPages;
    Round round, done;
    for (int i = 0, at = 0, read_at = 0; i < n + kBehind; ++i) {
      if (i < n) {
        if (at == 0) {
          team.wait_expanded(round, Page::kItems);
          asm volatile("fence.proxy.async.global;" ::: "memory");
        }
        bring_page(team.pages + (int64_t{round.slot} * team.n + at) * Page::kBytes, first_item + i);
        if (++at == team.n) at = 0, round.advance(team.rounds);
      }
      if (i < kBehind) continue;
      wait_brought(first_item + i - kBehind);
      if (++read_at < team.n) continue;
      read_at = 0;
      asm volatile("fence.proxy.async.global;" ::: "memory");  // copies have read what ordinary stores will write
      add_to_count(team.read + done.slot);
      done.advance(team.rounds);
    }
    for (; done.number < team.n_rounds; done.advance(team.rounds)) {  // in their order: none reads two ahead of another
      team.wait_expanded(done, Page::kItems);
      asm volatile("fence.proxy.async.global;" ::: "memory");
      add_to_count(team.read + done.slot);
    }
  }
};

/// Of warp `warp` of those that expand: shares, four at a time, the next one's codes loaded before that.
template <int kDim, int kKeyBits, int kValueBits>
__device__ __forceinline__ void expand_shares(const AttendCodesParams& p, const TileOnDevice& tile, int kv_head,
                                              const Team& team, int warp, const ExpandTables& tables) {
  using Page = ExpandedPage<kDim>;
  using Of = Share<kDim, kKeyBits, kValueBits>;
  const int n = team.n_expanders, end = team.n_pages * Page::kItems;
  const auto codes_of = [&](int item) {
    const int number = __ldg(p.attend.pages + tile.pages + min(max(item / Page::kItems, 1), team.last));
    return reinterpret_cast<const uint8_t*>(p.attend.kv.data) +
           static_cast<uint64_t>(number) * p.attend.kv.page_stride + int64_t{kv_head} * Of::kShape.bytes();
  };
  const auto share_of = [](int item) { return item % Page::kItems * kSharesOfItem; };
  int item = team.rank + warp;
  const uint8_t *from = codes_of(item), *after = codes_of(item + n);
  Of next;
  if (item < end) next.load(from, share_of(item));
  for (Round round; item < end; item += n) {
    const int page = item / Page::kItems;
    while ((round.number + 1) * team.n <= page) round.advance(team.rounds);
    std::byte* to = team.pages + (int64_t{round.slot} * team.n + page - round.number * team.n) * Page::kBytes;
    if (Of::lane() == 0) team.wait_read(round);
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < kSharesOfItem; ++i) {
      const Of share = next;
      const bool is_last = i + 1 == kSharesOfItem;
      next.load(is_last ? after : from, is_last ? share_of(item + n) : share_of(item) + i + 1);
      share.expand_to(to, share_of(item) + i, tables);
    }
    __syncwarp();
    if (Of::lane() == 0) add_to_count(team.expanded + round.slot);
    from = after;
    after = codes_of(item + 2 * n);
  }
}

template <int kDim>
struct Consumer {
  const HopperCodesParams& params;
  const TileOnDevice& tile;
  const int kv_head, head;
  const uint32_t pages;
  Ring<kDim>& ring;

  /// Where the thread's rotated query waits: what follows its rotation, 2 us earlier, is the wait for the first pages.
  __device__ __forceinline__ uint32_t place_of_query(int i) const {
    return pages + Ring<kDim>::kStages * 2 * Ring<kDim>::kBytes +
           (static_cast<uint32_t>(i * kHeads * kConsumers) + threadIdx.x) * 16;
  }
  __device__ __forceinline__ void put_rotated(float (&x)[kDim / 2]) const {
    rotate_rows<kDim>(params.codes.signs[2 * kv_head], x);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const float* of = x + 8 * i;
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(place_of_query(i)), "r"(pack(of[0], of[1])),
                   "r"(pack(of[2], of[3])), "r"(pack(of[4], of[5])), "r"(pack(of[6], of[7]))
                   : "memory");
    }
  }
  __device__ __forceinline__ void fetch_query(Rows<kDim>& rows) const {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t(&q)[4] = rows.q[i];
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3])
                   : "r"(place_of_query(i))
                   : "memory");
    }
  }
  __device__ __forceinline__ void run(const ExactList& exact, const CodeList& codes, bool stores) {
    const AttendCodesParams& p = params.codes;
    const int position = tile.position + Rows<kDim>::first_row(), n_keys = tile.position + tile.n_rows;
    const float* means = p.attend.kv.means;
    if (means) means += (p.attend.kv.n_kv_heads + kv_head) * kDim;
    Parked<kDim> parked{p.attend, tile, head, {Rows<kDim>::kLeast, Rows<kDim>::kLeast}, {}};
#pragma unroll 1
    for (int phase = 0; phase < 2; ++phase) {
      const EitherList list(phase == 1, tile, exact, codes);
      Rows<kDim> rows;
      parked.begin(rows);
      if (list.is_codes) {
        fetch_query(rows);
      } else {
        float x[kDim / 2];
        rows.load_numbers(p.attend.q, tile, head, x);
        rows.take_query(x);
        if (codes.n_steps > 0) put_rotated(x);
      }
      Walk<kDim, EitherList>{p.attend.scale, ring, pages, list, n_keys, position, rows}.run();
      if (!list.is_codes && codes.n_steps > 0) {
        parked.put(rows, stores);
        continue;
      }
      if (list.is_codes) {
        unrotate_rows<kDim>(p.signs[2 * kv_head + 1], rows.sums);
        if (stores) parked.add_to(rows);
      }
      if (stores) rows.store(p.attend, tile, head, means);
      break;
    }
  }
};

template <int kDim>
struct HopperShared {
  Ring<kDim> ring;
  ExpandTables tables[4];
};

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kThreads, 1)
    attend_hopper_codes_kernel(const __grid_constant__ HopperCodesParams params) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte dynamic[];
  __shared__ alignas(16) std::byte memory[sizeof(HopperShared<kDim>)];
  HopperShared<kDim>& shared = *reinterpret_cast<HopperShared<kDim>*>(memory);
  const uint32_t pages = (shared_address(dynamic) + 1023) & ~1023u;
  if (threadIdx.x == 0) {
    shared.ring.init();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (threadIdx.x < 4) shared.tables[threadIdx.x] = ExpandTables::known();
  __syncthreads();
  wait_for_predecessor();
  let_successor_start();
  const KvLayer& kv = params.codes.attend.kv;
  const TileOnDevice tile = params.tiles[params.team.own_tile()];
  const int group = params.codes.attend.n_heads / kv.n_kv_heads,
            pair = params.first_pair + static_cast<int>(blockIdx.x), kv_head = pair / params.head_pairs;
  const int in_group = pair % params.head_pairs * kHeads + static_cast<int>(threadIdx.x) / kConsumers;
  const ExactList exact(tile);
  const CodeList codes(tile);
  const bool helps = params.team.helps();
  if (helps || threadIdx.x >= kHeads * kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kBringerRegisters));
    const int first = helps ? 0 : kHeads * kConsumers, warp = (static_cast<int>(threadIdx.x) - first) / 32;
    const bool is_first = static_cast<int>(threadIdx.x) == first;
    const Bringer<kDim> bringer{params, tile, kv_head, pages, shared.ring};
    if (is_first && !helps) {
      asm volatile("fence.proxy.async.global;" ::: "memory");  // pages were written by ordinary stores
      bringer.bring_exact(exact);
    }
    __syncwarp();
    if (!params.team.pages) return;
    const Team team(params.team, params.tiles, params.team_pairs, ExpandedPage<kDim>::kBytes);
    if (is_first && !helps) bringer.bring_codes(codes, exact.n_steps * kPages, team);
    if (helps || warp > 0) {
      const ExpandTables tables = shared.tables[threadIdx.x % 4];
      expand_shares<kDim, kKeyBits, kValueBits>(params.codes, tile, kv_head, team, helps ? warp : warp - 1, tables);
    }
    __syncwarp();
    asm volatile("bar.sync 5, %0;" ::"r"(kThreads - first) : "memory");
    if (is_first && team.n_rounds > 0) team.leave();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    const int head = kv_head * group + min(in_group, group - 1);  // of an odd group's last pair one computes in vain
    Consumer<kDim>{params, tile, kv_head, head, pages, shared.ring}.run(exact, codes, in_group < group);
  }
#endif
}

template <int kDim, int kKeyBits, int kValueBits>
void start(const HopperCodesParams& params, dim3 grid, cudaStream_t stream) {
  constexpr int kQueries = kHeads * kConsumers * kDim;  // bytes: a thread's of 16 columns are 16
  constexpr int kShared = Ring<kDim>::kStages * 2 * Ring<kDim>::kBytes + kQueries + 1024;
  const auto kernel = attend_hopper_codes_kernel<kDim, kKeyBits, kValueBits>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory of attention over codes");
  launch("attention of tiles over codes", kernel, grid, kThreads, kShared, stream, params);
}

/// Blocks without rows, of each with rows.
constexpr int kMostHelpers = 2;
/// Head pairs and tiles of a launch whose blocks the GPU holds at a time.
struct LaunchShape {
  int pairs = 1, tiles = 1;
  LaunchShape(int all_pairs, int all_tiles) : pairs(all_pairs), tiles(all_tiles) {}
  LaunchShape(int head_pairs, int n_kv_heads, int n_tiles, int held) {
    int fewest = 0;
    for (int n = 1; n <= n_kv_heads * head_pairs && n <= held; n += n < head_pairs ? head_pairs - n : head_pairs) {
      const int of_tiles = std::min({n_tiles, held / n, kMostTeamTiles});
      const int launches = ceil_div(n_kv_heads * head_pairs, n) * ceil_div(n_tiles, of_tiles);
      if (fewest == 0 || launches <= fewest) fewest = launches, pairs = n, tiles = of_tiles;
    }
  }
};

}  // namespace

uint64_t HopperAttention::shared_page_bytes(int held, int head_dim) {
  return static_cast<uint64_t>(int64_t{held} * kTeamPages * kPageTokens * head_dim * 4);
}
uint64_t HopperAttention::shared_counter_bytes(int held) {
  return static_cast<uint64_t>(held) * TeamMemory::kCounters * sizeof(uint32_t);
}

void HopperAttention::attend_codes(const AttendCodesParams& codes, const TileOnDevice* tiles, int n_tiles,
                                   const SharedPages& shared, cudaStream_t stream) const {
  const AttendParams& p = codes.attend;
  const auto row_bytes = static_cast<uint64_t>(p.kv.head_dim * 2);
  if (p.kv.exact_stride % row_bytes != 0 || p.out.stride % 2 != 0 || reinterpret_cast<uintptr_t>(p.out.data) % 8 != 0) {
    throw Error(ErrorKind::bug, str("exact pages of heads of ", p.kv.head_dim, " at multiples of ", p.kv.exact_stride,
                                    " bytes, rows of ", p.out.stride));
  }
  const MappedPages exact{
      maps_.of(p.kv.exact, int64_t{1} << 31, p.kv.head_dim, kPageTokens, CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
      codes.exact, static_cast<int>(p.kv.exact_stride / row_bytes)};
  const int head_pairs = pairs_of(p);
  const LaunchShape shape = shared.pages ? LaunchShape(head_pairs, p.kv.n_kv_heads, n_tiles, shared.held)
                                         : LaunchShape{p.kv.n_kv_heads * head_pairs, n_tiles};
  for (int pair = 0; pair < p.kv.n_kv_heads * head_pairs; pair += shape.pairs) {
    for (int tile = 0; tile < n_tiles; tile += shape.tiles) {
      const int pairs = std::min(shape.pairs, p.kv.n_kv_heads * head_pairs - pair),
                of_tiles = std::min(shape.tiles, n_tiles - tile);
      const int rounds = shared.held * kTeamPages / (pairs * of_tiles);
      const int helpers = std::max(0, std::min(shared.held / (pairs * of_tiles) - 1, kMostHelpers));
      const dim3 grid(static_cast<unsigned>(pairs), static_cast<unsigned>(of_tiles * (1 + helpers)));
      const HopperCodesParams params{exact,
                                     codes,
                                     tiles + tile,
                                     head_pairs,
                                     pair,
                                     std::min(head_pairs, shape.pairs),
                                     {static_cast<std::byte*>(shared.pages), shared.counters,
                                      std::min(rounds, TeamMemory::kMostRounds), of_tiles, helpers}};
      with_code_shape(codes.shape, [&](auto of) {
        using Shape = decltype(of);
        start<Shape::kDim, Shape::kKeyBits, Shape::kValueBits>(params, grid, stream);
      });
    }
  }
}

}  // namespace firstlight::cuda
