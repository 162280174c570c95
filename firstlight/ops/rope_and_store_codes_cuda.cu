// SPDX-License-Identifier: Apache-2.0
// Rotation of q and k by position, and keys and values, less their means, into pages of TurboQuant codes (and their
// exact pages): a warp a head of a row. The values of four tokens share their bytes, so one warp takes those of a quad
// that come in this pass.
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

/// Warps of a block: of up to so many items one, so that no multiprocessor gets more of the long ones than others. 32
/// rows of 32/8 heads at tq4: 2.7 us, with blocks of four warps 3.3.
constexpr int64_t kSpreadItems = 4096;
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
  return reinterpret_cast<__nv_bfloat16*>(p.rope.kv.exact + static_cast<uint64_t>(page) * p.rope.kv.exact_stride) +
         ((int64_t{side} * p.rope.kv.n_kv_heads + kv_head) * kPageTokens + row.position % kPageTokens) * kDim;
}

template <int kDim>
__device__ __forceinline__ void store_exactly(const Vector<kDim>& x, __nv_bfloat16* slot) {
  if (!slot) return;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) slot[32 * j + threadIdx.x % 32] = __float2bfloat16_rn(x[j]);
}

__device__ __forceinline__ uint8_t* head_page(const StoreCodesParams& p, const RowOnDevice& row, int kv_head) {
  const auto page = static_cast<uint64_t>(__ldg(p.rope.pages + row.pages + row.position / kPageTokens));
  return reinterpret_cast<uint8_t*>(p.rope.kv.data) + page * p.rope.kv.page_stride + int64_t{kv_head} * p.shape.bytes();
}

/// Rows from `index` on whose values share a quad, which one warp writes; 0 if the warp of an earlier row does.
__device__ __forceinline__ int rows_of_quad(const StoreCodesParams& p, int index) {
  const RowOnDevice first = p.rope.rows[index];
  const auto follows = [&](int i, int n) {
    const RowOnDevice row = p.rope.rows[i];
    return row.pages == first.pages && row.position == first.position + n;
  };
  const int slot = first.position % tq::kQuad;
  if (index > 0 && slot != 0 && follows(index - 1, -1)) return 0;
  int n = 1;
  while (n < tq::kQuad - slot && index + n < p.rope.n_rows && follows(index + n, n)) ++n;
  return n;
}

/// What of an item is known before the pass's other kernels have written anything: all of it stands in the pass's
/// tables, each look-up behind another.
template <int kDim>
struct Place {
  RowOnDevice row;
  int head, side, kv_head, n_rows;  ///< side: -1 a query, 0 a key, 1 the values of n_rows
  uint8_t *page = nullptr, *quad = nullptr;
  __nv_bfloat16* exact = nullptr;
  uint32_t flips = 0;
  Vector<kDim> mean;

  __device__ Place(const StoreCodesParams& p, int index, int head) : row(p.rope.rows[index]), head(head) {
    kv_head = head - p.rope.n_heads;
    side = kv_head < 0 ? -1 : kv_head < p.rope.kv.n_kv_heads ? 0 : 1;
    if (side < 0) return;
    kv_head -= side * p.rope.kv.n_kv_heads;
    n_rows = side == 0 ? 1 : rows_of_quad(p, index);
    page = head_page(p, row, kv_head);
    exact = exact_slot<kDim>(p, row, side, kv_head);
    flips = lane_signs<kDim>(p.signs[2 * kv_head + side]);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) mean[j] = mean_of(p.rope.kv, side, kv_head, 32 * j + threadIdx.x % 32);
    quad = quad_of(p.shape, row.position % kPageTokens, page);
    if (side == 1 && threadIdx.x % 32 * 32 < static_cast<unsigned>(p.shape.quad_bytes()))
      asm volatile("prefetch.global.L2 [%0];" ::"l"(quad + threadIdx.x % 32 * 32));
  }
};

/// What is left of a key or value without its mean goes into the exact page, if there is one, and is turned.
template <int kDim>
__device__ __forceinline__ void centre_and_rotate(const Place<kDim>& place, __nv_bfloat16* exact, Vector<kDim>& x) {
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) x[j] = __fsub_rn(x[j], place.mean[j]);
  store_exactly<kDim>(x, exact);
  rotate<kDim>(place.flips, x);
}

/// Values of row `index` and of those behind it in the same quad.
template <int kDim, int kBits>
__device__ void encode_values(const StoreCodesParams& p, int index, const Place<kDim>& place) {
  Quad<kDim, kBits> quad;
  quad.load(place.quad);
  for (int n = 0; n < place.n_rows; ++n) {
    const RowOnDevice row = n == 0 ? place.row : p.rope.rows[index + n];
    Vector<kDim> x;
    load<kDim>(p.rope.qkv.data + row.row * p.rope.qkv.stride + int64_t{place.head} * kDim, x);
    centre_and_rotate<kDim>(place, n == 0 ? place.exact : exact_slot<kDim>(p, row, 1, place.kv_head), x);
    if (!encode_value<kDim, kBits>(p.shape, x, row.position % kPageTokens, quad, place.page))
      report({row.position, place.kv_head, 1}, p.fault, p.fault_seen);
  }
  quad.store(place.quad);
}

/// The RMS norm of a head, if the model has one, and the turn by the row's angles.
template <int kDim>
__device__ __forceinline__ void norm_and_turn(const StoreCodesParams& p, const RowOnDevice& row, bool is_query,
                                              Vector<kDim>& x) {
  constexpr int kHalf = kDim / 64;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (const void* norm = is_query ? p.rope.q_norm : p.rope.k_norm) {
    const bool is_bf16 = is_query ? p.rope.q_norm_bf16 : p.rope.k_norm_bf16;
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) squares = __fmaf_rn(x[j], x[j], squares);
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(kDim) + p.rope.eps);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int i = 32 * j + lane;
      x[j] *=
          scale * (is_bf16 ? widen(static_cast<const __nv_bfloat16*>(norm)[i]) : static_cast<const float*>(norm)[i]);
    }
  }
#pragma unroll
  for (int j = 0; j < kHalf; ++j) {
    const float2 turned =
        cuda::rotate(x[j], x[j + kHalf], p.rope.angles[int64_t{row.angle} * (kDim / 2) + 32 * j + lane]);
    x[j] = turned.x;
    x[j + kHalf] = turned.y;
  }
}

template <int kDim>
__global__ void rope_and_store_codes_kernel(const __grid_constant__ StoreCodesParams p) {
  let_successor_start();
  // Keys and values, which take longest, come first.
  const unsigned item = (blockIdx.x * blockDim.x + threadIdx.x) / 32,
                 stored = 2 * static_cast<unsigned>(p.rope.kv.n_kv_heads),
                 n_stored = static_cast<unsigned>(p.rope.n_rows) * stored,
                 heads = item < n_stored ? stored : static_cast<unsigned>(p.rope.n_heads),
                 at = item < n_stored ? item : item - n_stored;
  const int index = static_cast<int>(at / heads);
  if (index >= p.rope.n_rows) return wait_for_predecessor();
  const Place<kDim> place(p, index, static_cast<int>(at % heads) + (item < n_stored ? p.rope.n_heads : 0));
  wait_for_predecessor();
  if (place.side == 1) {
    if (place.n_rows == 0) return;
    if (p.shape.value_bits == 4) return encode_values<kDim, 4>(p, index, place);
    if (p.shape.value_bits == 8) return encode_values<kDim, 8>(p, index, place);
    if (p.shape.value_bits == 3) return encode_values<kDim, 3>(p, index, place);
    return encode_values<kDim, 2>(p, index, place);
  }
  const RowOnDevice& row = place.row;
  float* head = p.rope.qkv.data + row.row * p.rope.qkv.stride + int64_t{place.head} * kDim;
  Vector<kDim> x;
  load<kDim>(head, x);
  norm_and_turn<kDim>(p, row, place.side < 0, x);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) head[32 * j + threadIdx.x % 32] = x[j];
  if (place.side < 0) return;
  centre_and_rotate<kDim>(place, place.exact, x);
  const int slot = row.position % kPageTokens;
  const bool finite = p.shape.key_bits == 4   ? encode_key<kDim, 4>(p.shape, x, slot, place.page)
                      : p.shape.key_bits == 8 ? encode_key<kDim, 8>(p.shape, x, slot, place.page)
                                              : encode_key<kDim, 3>(p.shape, x, slot, place.page);
  if (!finite) report({row.position, place.kv_head, 0}, p.fault, p.fault_seen);
}

}  // namespace

void rope_and_store_codes(const StoreCodesParams& p, cudaStream_t stream) {
  const int64_t items = int64_t{p.rope.n_rows} * (p.rope.n_heads + 2 * p.rope.kv.n_kv_heads);
  const int d = p.rope.kv.head_dim, warps = items <= kSpreadItems ? 1 : kWarps;
  launch("rope_and_store of codes",
         d == 64    ? rope_and_store_codes_kernel<64>
         : d == 128 ? rope_and_store_codes_kernel<128>
                    : rope_and_store_codes_kernel<256>,
         dim3(static_cast<unsigned>((items + warps - 1) / warps)), warps * 32, 0, stream, p);
}

}  // namespace cuda

}  // namespace firstlight
