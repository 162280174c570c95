// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt on Hopper: a block takes up to 64 rows of two heads of a group, a warpgroup a head, and a warp
// brings the pages they see by tensor maps. Scores of the next page are on their way while a page's weights are made
// and its values mixed (Shah et al., FlashAttention-3). q and the weights are rounded to bf16.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/attend_hopper_walk_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

namespace {

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) attend_hopper_kernel(const __grid_constant__ HopperParams params) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte dynamic[];
  __shared__ alignas(16) std::byte memory[sizeof(Ring<kDim>)];
  Ring<kDim>& ring = *reinterpret_cast<Ring<kDim>*>(memory);
  const uint32_t pages = (shared_address(dynamic) + 1023) & ~1023u;
  if (threadIdx.x == 0) {
    ring.init();
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
      fetch_pages<kDim>(params, tile, kv_head, list, pages, ring);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int head = kv_head * group + min(in_group, group - 1);  // of an odd group's last pair one computes in vain
    Rows<kDim> rows;
    float x[kDim / 2];
    rows.load_numbers(p.q, tile, head, x);
    rows.take_query(x);
    Walk<kDim, PageList>{p.scale, ring, pages, list, tile.position + tile.n_rows, tile.position + rows.first_row(),
                         rows}
        .run();
    if (in_group < group) rows.store(p, tile, head, nullptr);
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
