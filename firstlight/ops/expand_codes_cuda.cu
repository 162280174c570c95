// SPDX-License-Identifier: Apache-2.0
// Pages of TurboQuant codes as the keys and values that they stand for, in bf16: a block a page and head.
#include "firstlight/ops/attend_codes_tile_page_cuda.cuh"
#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"

namespace firstlight::cuda {

namespace {

struct ExpandParams {
  AttendCodesParams codes;
  int first;
  __nv_bfloat16* expanded;
};

template <int kDim>
__device__ __forceinline__ void put_vectors(const uint4* levels, const float* scales, const tq::Signs& signs,
                                            __nv_bfloat16* to) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t flips = lane_signs<kDim>(signs);
  for (int slot = warp; slot < kPageTokens; slot += kCodeTileThreads / 32) {
    float x[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int at = 32 * j + lane;
      x[j] = widen(reinterpret_cast<const __nv_bfloat16*>(levels + place<kDim>(slot, at / 8))[at % 8]) * scales[slot];
    }
    unrotate<kDim>(flips, x);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) to[slot * kDim + 32 * j + lane] = __float2bfloat16_rn(x[j]);
  }
}

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kCodeTileThreads) expand_kernel(const __grid_constant__ ExpandParams params) {
  extern __shared__ __align__(128) std::byte dynamic[];
  TileShared<kDim>& shared = *reinterpret_cast<TileShared<kDim>*>(dynamic);
  wait_for_predecessor();
  let_successor_start();
  const AttendCodesParams& p = params.codes;
  const KvLayer& kv = p.attend.kv;
  const int at = params.first + static_cast<int>(blockIdx.x) + 1, kv_head = static_cast<int>(blockIdx.y);
  PageCodes<kDim, kKeyBits, kValueBits> codes;
  codes.load(reinterpret_cast<const uint8_t*>(kv.data) + static_cast<uint64_t>(p.attend.pages[at]) * kv.page_stride +
             int64_t{kv_head} * codes.kShape.bytes());
  codes.expand_to(shared, ExpandTables::known());
  __syncthreads();
  __nv_bfloat16* to = params.expanded + (int64_t{at} * 2 * kv.n_kv_heads + kv_head) * kPageTokens * kDim;
  put_vectors<kDim>(shared.keys, shared.key_scales, p.signs[2 * kv_head], to);
  put_vectors<kDim>(shared.values, shared.value_scales, p.signs[2 * kv_head + 1],
                    to + int64_t{kv.n_kv_heads} * kPageTokens * kDim);
}

template <int kDim, int kKeyBits, int kValueBits>
void start(const ExpandParams& params, int n_pages, cudaStream_t stream) {
  launch("expand codes", expand_kernel<kDim, kKeyBits, kValueBits>,
         dim3(static_cast<unsigned>(n_pages - 1), static_cast<unsigned>(params.codes.attend.kv.n_kv_heads)),
         kCodeTileThreads, sizeof(TileShared<kDim>), stream, params);
}

}  // namespace

void expand_codes(const AttendCodesParams& p, int first, int n_pages, __nv_bfloat16* expanded, cudaStream_t stream) {
  if (n_pages <= 1) return;
  const ExpandParams params{p, first, expanded};
  const bool is_small = p.shape.head_dim == 64;
  if (p.shape.key_bits == 4) {
    is_small ? start<64, 4, 4>(params, n_pages, stream) : start<128, 4, 4>(params, n_pages, stream);
  } else if (p.shape.value_bits == 4) {
    is_small ? start<64, 8, 4>(params, n_pages, stream) : start<128, 8, 4>(params, n_pages, stream);
  } else {
    is_small ? start<64, 8, 8>(params, n_pages, stream) : start<128, 8, 8>(params, n_pages, stream);
  }
}

}  // namespace firstlight::cuda
