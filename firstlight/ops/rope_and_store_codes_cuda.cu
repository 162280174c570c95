// SPDX-License-Identifier: Apache-2.0
// Rotation of q and k by position, and keys and values into pages of TurboQuant codes (and their exact pages): a warp a
// head of a row. The values of four tokens share their bytes, so one warp takes those of a quad that come in this pass.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_store_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight {

namespace cuda {

namespace {

constexpr int kWarps = 4;

template <int kDim>
using Vector = float[kDim / 32];

template <int kDim>
__device__ __forceinline__ void load(const float* head, Vector<kDim>& x) {
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) x[j] = head[32 * j + threadIdx.x % 32];
}

/// Where a row's numbers of one head go in bf16; null without an exact page.
template <int kDim>
__device__ __forceinline__ __nv_bfloat16* exact_slot(const StoreCodesParams& p, const RowOnDevice& row, int side,
                                                     int kv_head) {
  const int page = __ldg(p.exact + row.pages + row.position / kPageTokens);
  if (page < 0) return nullptr;
  return reinterpret_cast<__nv_bfloat16*>(p.kv.exact + static_cast<uint64_t>(page) * p.kv.exact_stride) +
         ((int64_t{side} * p.kv.n_kv_heads + kv_head) * kPageTokens + row.position % kPageTokens) * kDim;
}

template <int kDim>
__device__ __forceinline__ void store_exactly(const Vector<kDim>& x, __nv_bfloat16* slot) {
  if (!slot) return;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) slot[32 * j + threadIdx.x % 32] = __float2bfloat16_rn(x[j]);
}

__device__ __forceinline__ uint8_t* head_page(const StoreCodesParams& p, const RowOnDevice& row, int kv_head) {
  const auto page = static_cast<uint64_t>(__ldg(p.pages + row.pages + row.position / kPageTokens));
  return reinterpret_cast<uint8_t*>(p.kv.data) + page * p.kv.page_stride + int64_t{kv_head} * p.shape.bytes();
}

/// Notes the first vector that is not finite; the host looks when the pass ends.
__device__ void report(const StoreCodesParams& p, const RowOnDevice& row, int side, int kv_head) {
  if (threadIdx.x % 32 != 0) return;
  atomicMin(p.fault, CodeFault{row.position, kv_head, side}.packed());
  *static_cast<volatile uint32_t*>(p.fault_seen) = 1;
}

template <int kDim, int kBits>
__device__ void encode_key(const StoreCodesParams& p, const RowOnDevice& row, int kv_head, uint8_t* page,
                           const Vector<kDim>& y) {
  uint32_t codes[kDim / 32];
  uint16_t scale;
  if (!encode_rotated<kDim, kBits>(y, codes, scale)) report(p, row, 0, kv_head);
  const int slot = row.position % kPageTokens;
  store_key<kDim, kBits>(codes, page + slot * p.shape.key_bytes());
  if (threadIdx.x % 32 == 0) reinterpret_cast<uint16_t*>(page + p.shape.key_scales_at())[slot] = scale;
}

/// Values of row `index` and of those behind it in the same quad.
template <int kDim, int kBits>
__device__ void encode_values(const StoreCodesParams& p, int index, int kv_head) {
  const RowOnDevice first = p.rows[index];
  uint8_t* page = head_page(p, first, kv_head);
  uint8_t* at = page + p.shape.values_at() + first.position % kPageTokens / tq::kQuad * p.shape.quad_bytes();
  const uint32_t signs = lane_signs<kDim>(p.signs[2 * kv_head + 1]);
  Quad<kDim, kBits> quad;
  quad.load(at);
  for (int n = 0; n < tq::kQuad && index + n < p.n_rows; ++n) {
    const RowOnDevice row = p.rows[index + n];
    if (row.pages != first.pages || row.position != first.position + n || (n > 0 && row.position % tq::kQuad == 0))
      break;
    Vector<kDim> x;
    load<kDim>(p.qkv.data + row.row * p.qkv.stride + int64_t{p.n_heads + p.kv.n_kv_heads + kv_head} * kDim, x);
    store_exactly<kDim>(x, exact_slot<kDim>(p, row, 1, kv_head));
    rotate<kDim>(signs, x);
    uint32_t codes[kDim / 32];
    uint16_t scale;
    if (!encode_rotated<kDim, kBits>(x, codes, scale)) report(p, row, 1, kv_head);
    quad.put(row.position % tq::kQuad, codes);
    if (threadIdx.x % 32 == 0)
      reinterpret_cast<uint16_t*>(page + p.shape.value_scales_at())[row.position % kPageTokens] = scale;
  }
  quad.store(at);
}

/// The RMS norm of a head, if the model has one, and the turn by the row's angles.
template <int kDim>
__device__ __forceinline__ void norm_and_turn(const StoreCodesParams& p, const RowOnDevice& row, bool is_query,
                                              Vector<kDim>& x) {
  constexpr int kHalf = kDim / 64;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (const void* norm = is_query ? p.q_norm : p.k_norm) {
    const bool is_bf16 = is_query ? p.q_norm_bf16 : p.k_norm_bf16;
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) squares = __fmaf_rn(x[j], x[j], squares);
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(kDim) + p.eps);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int i = 32 * j + lane;
      x[j] *=
          scale * (is_bf16 ? widen(static_cast<const __nv_bfloat16*>(norm)[i]) : static_cast<const float*>(norm)[i]);
    }
  }
#pragma unroll
  for (int j = 0; j < kHalf; ++j) {
    const float2 turned = cuda::rotate(x[j], x[j + kHalf], p.angles[int64_t{row.angle} * (kDim / 2) + 32 * j + lane]);
    x[j] = turned.x;
    x[j + kHalf] = turned.y;
  }
}

template <int kDim>
__global__ void rope_and_store_codes_kernel(const __grid_constant__ StoreCodesParams p) {
  wait_for_predecessor();
  let_successor_start();
  const int n_rotated = p.n_heads + p.kv.n_kv_heads, heads = n_rotated + p.kv.n_kv_heads;
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= int64_t{p.n_rows} * heads) return;
  const int index = static_cast<int>(item / heads), h = static_cast<int>(item % heads);
  const RowOnDevice row = p.rows[index];
  if (h >= n_rotated) {
    if (index > 0 && row.position % tq::kQuad != 0) {  // the warp of an earlier row takes this one
      const RowOnDevice before = p.rows[index - 1];
      if (before.pages == row.pages && before.position + 1 == row.position) return;
    }
    const int kv_head = h - n_rotated;
    if (p.shape.value_bits == 4) return encode_values<kDim, 4>(p, index, kv_head);
    if (p.shape.value_bits == 8) return encode_values<kDim, 8>(p, index, kv_head);
    if (p.shape.value_bits == 3) return encode_values<kDim, 3>(p, index, kv_head);
    return encode_values<kDim, 2>(p, index, kv_head);
  }
  float* head = p.qkv.data + row.row * p.qkv.stride + int64_t{h} * kDim;
  const bool is_key = h >= p.n_heads;
  const int kv_head = is_key ? h - p.n_heads : 0;
  // All that is to be looked up is asked for at once: one after the other it takes a microsecond more.
  const uint32_t flips = is_key ? lane_signs<kDim>(p.signs[2 * kv_head]) : 0;
  __nv_bfloat16* const slot = is_key ? exact_slot<kDim>(p, row, 0, kv_head) : nullptr;
  uint8_t* const page = is_key ? head_page(p, row, kv_head) : nullptr;
  Vector<kDim> x;
  load<kDim>(head, x);
  norm_and_turn<kDim>(p, row, h < p.n_heads, x);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) head[32 * j + threadIdx.x % 32] = x[j];
  if (!is_key) return;
  store_exactly<kDim>(x, slot);
  rotate<kDim>(flips, x);
  if (p.shape.key_bits == 4) return encode_key<kDim, 4>(p, row, kv_head, page, x);
  if (p.shape.key_bits == 8) return encode_key<kDim, 8>(p, row, kv_head, page, x);
  encode_key<kDim, 3>(p, row, kv_head, page, x);
}

}  // namespace

void rope_and_store_codes(const StoreCodesParams& p, cudaStream_t stream) {
  const int64_t items = int64_t{p.n_rows} * (p.n_heads + 2 * p.kv.n_kv_heads);
  const int d = p.kv.head_dim;
  launch("rope_and_store of codes",
         d == 64    ? rope_and_store_codes_kernel<64>
         : d == 128 ? rope_and_store_codes_kernel<128>
                    : rope_and_store_codes_kernel<256>,
         dim3(static_cast<unsigned>((items + kWarps - 1) / kWarps)), kWarps * 32, 0, stream, p);
}

}  // namespace cuda

}  // namespace firstlight
