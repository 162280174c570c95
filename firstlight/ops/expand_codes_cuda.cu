// SPDX-License-Identifier: Apache-2.0
// Pages of TurboQuant codes as the keys and values that they stand for, in bf16: a block a page and head, a thread a
// vector, whose rotation then needs no other thread (with a warp a vector its shuffles took 92 us for 16,000 tokens of
// 8 heads).
#include "firstlight/ops/attend_codes_tile_page_cuda.cuh"
#include "firstlight/ops/attend_hopper_cuda.cuh"

namespace firstlight::cuda {

namespace {

struct ExpandParams {
  AttendCodesParams codes;
  int first;
  __nv_bfloat16* expanded;
};

/// 1 and -1, as signs: of keys, of values, by round.
template <int kDim>
using Flips = float[2][tq::rounds(kDim)][kDim];

template <int kDim>
__device__ __forceinline__ void spread_signs(const tq::Signs* signs, Flips<kDim>& flips) {
  for (int i = static_cast<int>(threadIdx.x); i < 2 * tq::rounds(kDim) * kDim; i += kCodeTileThreads) {
    const int at = i % kDim, round = i / kDim % tq::rounds(kDim), side = i / kDim / tq::rounds(kDim);
    const uint64_t bits = __ldg(reinterpret_cast<const unsigned long long*>(&signs[side].bits[round][at / 64]));
    flips[side][round][at] = bits >> (at % 64) & 1 ? -1.0f : 1.0f;
  }
}

/// Πᵀ x of a vector in registers: sums as unrotate() has them.
template <int kDim>
__device__ __forceinline__ void unrotate_own(const float (&flips)[tq::rounds(kDim)][kDim], float scale,
                                             float (&x)[kDim]) {
#pragma unroll 1
  for (int round = tq::rounds(kDim) - 1; round >= 0; --round) {
#pragma unroll
    for (int h = kDim / 2; h >= 1; h /= 2) {
#pragma unroll
      for (int i = 0; i < kDim; ++i) {
        if (i & h) continue;
        const float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
    }
#pragma unroll
    for (int i = 0; i < kDim; i += 4) {
      const float4 each = *reinterpret_cast<const float4*>(&flips[round][i]);
      x[i] *= each.x, x[i + 1] *= each.y, x[i + 2] *= each.z, x[i + 3] *= each.w;
    }
  }
#pragma unroll
  for (int i = 0; i < kDim; ++i) x[i] *= scale;
}

/// A thread's vector, in its place: levels become numbers.
template <int kDim>
__device__ __forceinline__ void expand_own(uint4* vectors, int slot, float scale,
                                           const float (&flips)[tq::rounds(kDim)][kDim]) {
  float x[kDim];
#pragma unroll
  for (int piece = 0; piece < kDim / 8; ++piece) {
    const uint4 levels = vectors[place<kDim>(slot, piece)];
    const uint32_t pairs[4] = {levels.x, levels.y, levels.z, levels.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[piece * 8 + 2 * i] = __uint_as_float(pairs[i] << 16);
      x[piece * 8 + 2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
  }
  unrotate_own<kDim>(flips, scale * tq::rotation_scale(kDim), x);
#pragma unroll
  for (int piece = 0; piece < kDim / 8; ++piece) {
    const float* y = x + piece * 8;
    vectors[place<kDim>(slot, piece)] =
        make_uint4(pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7]));
  }
}

template <int kDim>
__device__ __forceinline__ void store_vectors(const uint4* vectors, __nv_bfloat16* to) {
#pragma unroll
  for (int i = 0; i < kPageTokens * kDim / 8 / kCodeTileThreads; ++i) {
    const int at = i * kCodeTileThreads + static_cast<int>(threadIdx.x);
    reinterpret_cast<uint4*>(to)[at] = vectors[place<kDim>(at / (kDim / 8), at % (kDim / 8))];
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
  __shared__ alignas(16) Flips<kDim> flips;
  spread_signs<kDim>(&p.signs[2 * kv_head], flips);
  codes.expand_to(shared, ExpandTables::known());
  __syncthreads();
  static_assert(kCodeTileThreads == 2 * kPageTokens);
  const int side = static_cast<int>(threadIdx.x) / kPageTokens, slot = static_cast<int>(threadIdx.x) % kPageTokens;
  expand_own<kDim>(side == 0 ? shared.keys : shared.values, slot,
                   (side == 0 ? shared.key_scales : shared.value_scales)[slot], flips[side]);
  __syncthreads();
  __nv_bfloat16* to = params.expanded + (int64_t{at} * 2 * kv.n_kv_heads + kv_head) * kPageTokens * kDim;
  store_vectors<kDim>(shared.keys, to);
  store_vectors<kDim>(shared.values, to + int64_t{kv.n_kv_heads} * kPageTokens * kDim);
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
