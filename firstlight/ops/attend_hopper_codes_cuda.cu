// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt over TurboQuant codes on Hopper: as over bf16 pages (attend_hopper_cuda.cu), but the third
// warpgroup makes bf16 of a page's codes, in the ring. What codes give is rotated back before the exact pages follow,
// which tensor copies bring to the same ring.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/attend_hopper_codes_pages_cuda.cuh"
#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/attend_hopper_expand_cuda.cuh"
#include "firstlight/ops/attend_hopper_rotate_cuda.cuh"
#include "firstlight/ops/attend_hopper_walk_cuda.cuh"

namespace firstlight::cuda {

namespace {

struct HopperCodesParams {
  MappedPages exact;
  AttendCodesParams codes;
  const TileOnDevice* tiles;
  int head_pairs;
};

/// Pages as they are stored, on their way to those that expand them.
template <int kDim, int kKeyBits, int kValueBits>
struct CodeRing {
  static constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  static constexpr int kStages = kDim == 64 || kKeyBits == 4 ? 3 : 2;  ///< as many as there is room for
  MemoryBarrier full[kStages];
};

template <int kDim, int kKeyBits, int kValueBits>
struct HopperShared {
  Ring<kDim> ring;
  CodeRing<kDim, kKeyBits, kValueBits> codes;
  ExpandTables tables[4];
};

template <int kDim>
constexpr int kRingBytes = Ring<kDim>::kStages * 2 * Ring<kDim>::kBytes;

/// The third warpgroup's work.
template <int kDim, int kKeyBits, int kValueBits>
struct Bringer {
  using Shared = HopperShared<kDim, kKeyBits, kValueBits>;
  using Codes = CodeRing<kDim, kKeyBits, kValueBits>;
  /// A thread's, beside 224 of one that consumes: if those have 216 products wait for one another, and with 40 these
  /// spill (512 rows behind 32,256 keys: 819 us, so 743). What holds it back is expanding: without it 414 us, it alone
  /// 486.
  static constexpr int kRegisters = 56;
  const HopperCodesParams& params;
  const TileOnDevice& tile;
  const int kv_head;
  const uint32_t pages, codes;
  Shared& shared;

  __device__ __forceinline__ static bool is_first() { return threadIdx.x % kExpanders == 0; }
  __device__ __forceinline__ int number_of(const CodeList& list, int i) const {
    return __ldg(params.codes.attend.pages + tile.pages + list.fetched(i));
  }
  __device__ __forceinline__ void ask(int number, int i) {
    const AttendParams& p = params.codes.attend;
    MemoryBarrier& full = shared.codes.full[i % Codes::kStages];
    full.arrive_and_expect(Codes::kShape.bytes());
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     codes + static_cast<uint32_t>(i % Codes::kStages * Codes::kShape.bytes())),
                 "l"(reinterpret_cast<const uint8_t*>(p.kv.data) + static_cast<uint64_t>(number) * p.kv.page_stride +
                     int64_t{kv_head} * Codes::kShape.bytes()),
                 "r"(Codes::kShape.bytes()), "r"(shared_address(&full))
                 : "memory");
  }
  /// What the warp wrote is seen by products.
  __device__ __forceinline__ static void hand_over(MemoryBarrier& full) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (threadIdx.x % 32 == 0) full.arrive();
  }
  __device__ __forceinline__ void bring_codes(const CodeList& list) {
    const int n = list.n_steps * kPages;
    if (is_first()) {
      for (int i = 0; i < min(n, Codes::kStages); ++i) ask(number_of(list, i), i);
    }
    int next = n > 0 ? number_of(list, Codes::kStages) : 0;
    const ExpandTables tables = shared.tables[threadIdx.x % 4];
    for (int i = 0; i < n; ++i) {
      const Place<kDim> place(i);
      const uint32_t from = codes + static_cast<uint32_t>(i % Codes::kStages * Codes::kShape.bytes());
      shared.codes.full[i % Codes::kStages].wait(static_cast<unsigned>(i / Codes::kStages) & 1);
      if (i >= Ring<kDim>::kStages) shared.ring.keys_empty[place.stage].wait(place.parity ^ 1);
      expand_keys<kDim, kKeyBits>(tables, from, from + Codes::kShape.key_scales_at(), place.keys(pages));
      hand_over(shared.ring.keys_full[place.stage]);
      if (i >= Ring<kDim>::kStages) shared.ring.values_empty[place.stage].wait(place.parity ^ 1);
      expand_values<kDim, kValueBits>(tables, from + Codes::kShape.values_at(), from + Codes::kShape.value_scales_at(),
                                      place.values_of_page(pages));
      hand_over(shared.ring.values_full[place.stage]);
      asm volatile("bar.sync 5, %0;" ::"n"(kExpanders) : "memory");
      if (is_first() && i + Codes::kStages < n) ask(next, i + Codes::kStages);
      next = number_of(list, i + 1 + Codes::kStages);
    }
  }
  /// One thread's.
  __device__ __forceinline__ void bring_exact(const ExactList& list) {
    const int to_values = params.codes.attend.kv.n_kv_heads * kPageTokens;
    for (int i = 0; i < list.n_steps * kPages; ++i) {
      const int row = params.exact.numbers[tile.pages + list.fetched(i)] * params.exact.rows + kv_head * kPageTokens;
      fetch_page(params.exact.map, row, to_values, list.first_item + i, pages, shared.ring, kExpanders / 32);
    }
  }
};

template <int kDim>
struct Consumer {
  static constexpr int kRegisters = 224;
  const HopperCodesParams& params;
  const TileOnDevice& tile;
  const int kv_head, head;
  const uint32_t pages;
  Ring<kDim>& ring;

  __device__ __forceinline__ void run(const CodeList& codes, const ExactList& exact, bool stores) {
    const AttendCodesParams& p = params.codes;
    const int position = tile.position + Rows<kDim>::first_row(), n_keys = tile.position + tile.n_rows;
    Rows<kDim> rows;
    if (codes.n_steps > 0) {
      rows.load_query(p.attend.q, tile, head, [&](auto& x) { rotate_rows<kDim>(p.signs[2 * kv_head], x); });
      Walk<kDim, CodeList>{p.attend.scale, ring, pages, codes, n_keys, position, rows}.run();
      unrotate_rows<kDim>(p.signs[2 * kv_head + 1], rows.sums);
    }
    rows.load_query(p.attend.q, tile, head, [](auto&) {});
    Walk<kDim, ExactList>{p.attend.scale, ring, pages, exact, n_keys, position, rows}.run();
    const float* means = p.attend.kv.means;
    if (stores) rows.store(p.attend, tile, head, means ? means + (p.attend.kv.n_kv_heads + kv_head) * kDim : nullptr);
  }
};

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kThreads, 1)
    attend_hopper_codes_kernel(const __grid_constant__ HopperCodesParams params) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = HopperShared<kDim, kKeyBits, kValueBits>;
  extern __shared__ std::byte dynamic[];
  __shared__ alignas(16) std::byte memory[sizeof(Shared)];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const uint32_t pages = (shared_address(dynamic) + 1023) & ~1023u, codes = pages + kRingBytes<kDim>;
  if (threadIdx.x == 0) {
    shared.ring.init(kExpanders / 32);
    for (MemoryBarrier& each : shared.codes.full) each.init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (threadIdx.x < 4) shared.tables[threadIdx.x] = ExpandTables::known();
  __syncthreads();
  wait_for_predecessor();
  let_successor_start();
  const KvLayer& kv = params.codes.attend.kv;
  const TileOnDevice tile = params.tiles[blockIdx.y];
  const int group = params.codes.attend.n_heads / kv.n_kv_heads,
            kv_head = static_cast<int>(blockIdx.x) / params.head_pairs;
  const int in_group =
      static_cast<int>(blockIdx.x) % params.head_pairs * kHeads + static_cast<int>(threadIdx.x) / kConsumers;
  const CodeList of_codes(tile);
  const ExactList exact(tile, of_codes.n_steps * kPages);
  if (threadIdx.x >= kHeads * kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Bringer<kDim, kKeyBits, kValueBits>::kRegisters));
    Bringer<kDim, kKeyBits, kValueBits> bringer{params, tile, kv_head, pages, codes, shared};
    asm volatile("fence.proxy.async;" ::: "memory");  // pages were written by ordinary stores
    bringer.bring_codes(of_codes);
    if (bringer.is_first()) bringer.bring_exact(exact);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Consumer<kDim>::kRegisters));
    const int head = kv_head * group + min(in_group, group - 1);  // of an odd group's last pair one computes in vain
    Consumer<kDim>{params, tile, kv_head, head, pages, shared.ring}.run(of_codes, exact, in_group < group);
  }
#endif
}

template <int kDim, int kKeyBits, int kValueBits>
void start(const HopperCodesParams& params, int n_tiles, cudaStream_t stream) {
  using Codes = CodeRing<kDim, kKeyBits, kValueBits>;
  constexpr int kShared = kRingBytes<kDim> + Codes::kStages * Codes::kShape.bytes() + 1024;
  const auto kernel = attend_hopper_codes_kernel<kDim, kKeyBits, kValueBits>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory of attention over codes");
  launch("attention of tiles over codes", kernel,
         dim3(static_cast<unsigned>(params.codes.attend.kv.n_kv_heads * params.head_pairs),
              static_cast<unsigned>(n_tiles)),
         kThreads, kShared, stream, params);
}

}  // namespace

void HopperAttention::attend_codes(const AttendCodesParams& codes, const TileOnDevice* tiles, int n_tiles,
                                   cudaStream_t stream) const {
  const AttendParams& p = codes.attend;
  const auto row_bytes = static_cast<uint64_t>(p.kv.head_dim * 2);
  if (p.kv.exact_stride % row_bytes != 0 || p.out.stride % 2 != 0 || reinterpret_cast<uintptr_t>(p.out.data) % 8 != 0) {
    throw Error(ErrorKind::bug, str("exact pages of heads of ", p.kv.head_dim, " at multiples of ", p.kv.exact_stride,
                                    " bytes, rows of ", p.out.stride));
  }
  const MappedPages exact{
      maps_.of(p.kv.exact, int64_t{1} << 31, p.kv.head_dim, kPageTokens, CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
      codes.exact, static_cast<int>(p.kv.exact_stride / row_bytes)};
  const HopperCodesParams params{exact, codes, tiles, pairs_of(p)};
  with_code_shape(codes.shape, [&](auto of) {
    using Shape = decltype(of);
    start<Shape::kDim, Shape::kKeyBits, Shape::kValueBits>(params, n_tiles, stream);
  });
}

}  // namespace firstlight::cuda
