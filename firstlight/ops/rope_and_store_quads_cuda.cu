// SPDX-License-Identifier: Apache-2.0
// What rope_and_store_codes() does, for many rows: a warp takes four vectors at once, keys of four rows, values of a
// quad or four heads of a query.
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_four_store_cuda.cuh"
#include "firstlight/ops/codes_store_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 4;
/// Of rows that are not one by one, whose values share quads, so many and half of all. At 8 rows of a sequence 5.0 us
/// where a vector a warp takes 6.7, at 64 5.9 and 7.9, at 512 8.2 and 14.8, at 2,048 40 and 54 (tq4, 32/8 heads of 128;
/// bf16 pages 1.9, 2.4, 8.9 and 46). With 85 registers a thread, so that more warps fit, 512 rows take 8.5 and
/// 2,048 36.
constexpr int kLeastRows = 8;

/// One head of one row, of which a lane has every eighth piece of four numbers.
template <int kDim>
struct Head {
  const StoreCodesParams& p;
  RowOnDevice row;
  int head;
  bool is_there;  ///< else its lanes only take part in exchanges
  float x[kDim / 8] = {};

  __device__ __forceinline__ float* at() const {
    return p.rope.qkv.data + row.row * p.rope.qkv.stride + int64_t{head} * kDim + own_lane() * 4;
  }
  __device__ __forceinline__ void load() {
    if (!is_there) return;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const float4 four = *reinterpret_cast<const float4*>(at() + 32 * j);
      x[4 * j] = four.x, x[4 * j + 1] = four.y, x[4 * j + 2] = four.z, x[4 * j + 3] = four.w;
    }
  }
  __device__ __forceinline__ void store() const {
    if (!is_there) return;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j)
      *reinterpret_cast<float4*>(at() + 32 * j) = make_float4(x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]);
  }
  /// The RMS norm, if the model has one.
  __device__ __forceinline__ void norm(const void* weights, bool is_bf16) {
    if (!weights) return;
    float squares[4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) squares[i % 4] = __fmaf_rn(x[i], x[i], squares[i % 4]);
    const float scale = rsqrtf(sum_of_lanes(squares) / static_cast<float>(kDim) + p.rope.eps);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const int at = coordinate_of(i);
      x[i] *= scale * (is_bf16 ? widen(static_cast<const __nv_bfloat16*>(weights)[at])
                               : static_cast<const float*>(weights)[at]);
    }
  }
  /// By the row's angles.
  __device__ __forceinline__ void turn() {
    constexpr int kHalf = kDim / 16;
    const float2* const angles = p.rope.angles + int64_t{row.angle} * (kDim / 2) + own_lane() * 4;
#pragma unroll
    for (int i = 0; i < kHalf; i += 2) {
      const float4 two = *reinterpret_cast<const float4*>(angles + i / 4 * 32 + i % 4);
      const float2 a = cuda::rotate(x[i], x[i + kHalf], make_float2(two.x, two.y)),
                   b = cuda::rotate(x[i + 1], x[i + 1 + kHalf], make_float2(two.z, two.w));
      x[i] = a.x, x[i + kHalf] = a.y, x[i + 1] = b.x, x[i + 1 + kHalf] = b.y;
    }
  }
  /// A key's or value's mean goes, what is left is stored exactly if there is a page for it.
  __device__ __forceinline__ void centre_and_store(int side, int kv_head) {
    if (p.rope.kv.means) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) x[i] = __fsub_rn(x[i], mean_of(p.rope.kv, side, kv_head, coordinate_of(i)));
    }
    const int page = is_there ? __ldg(p.exact + row.pages + row.position / kPageTokens) : -1;
    if (page < 0) return;
    auto* const slot =
        reinterpret_cast<__nv_bfloat16*>(p.rope.kv.exact + static_cast<uint64_t>(page) * p.rope.kv.exact_stride) +
        ((int64_t{side} * p.rope.kv.n_kv_heads + kv_head) * kPageTokens + row.position % kPageTokens) * kDim +
        own_lane() * 4;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      *reinterpret_cast<uint2*>(slot + 32 * j) =
          make_uint2(pack(x[4 * j], x[4 * j + 1]), pack(x[4 * j + 2], x[4 * j + 3]));
    }
  }
  __device__ __forceinline__ uint8_t* page(int kv_head) const {
    const auto number = static_cast<uint64_t>(__ldg(p.rope.pages + row.pages + row.position / kPageTokens));
    return reinterpret_cast<uint8_t*>(p.rope.kv.data) + number * p.rope.kv.page_stride +
           int64_t{kv_head} * p.shape.bytes();
  }
  __device__ __forceinline__ void end(bool finite, int side, int kv_head, uint16_t scale, uint8_t* scales) const {
    if (!is_there || own_lane() != 0) return;
    reinterpret_cast<uint16_t*>(scales)[row.position % kPageTokens] = scale;
    if (finite) return;
    atomicMin(p.fault, CodeFault{row.position, kv_head, side}.packed());
    *static_cast<volatile uint32_t*>(p.fault_seen) = 1;
  }
};

template <int kDim>
__device__ __forceinline__ void turn_queries(const StoreCodesParams& p, int index, int first_head) {
  const int head = first_head + own_vector();
  Head<kDim> query{p, p.rope.rows[index], head, head < p.rope.n_heads};
  wait_for_predecessor();
  query.load();
  query.norm(p.rope.q_norm, p.rope.q_norm_bf16);
  query.turn();
  query.store();
}

template <int kDim, int kBits>
__device__ __forceinline__ void store_keys_of_rows(const StoreCodesParams& p, int first, int kv_head) {
  const int index = first + own_vector();
  Head<kDim> key{p, p.rope.rows[min(index, p.rope.n_rows - 1)], p.rope.n_heads + kv_head, index < p.rope.n_rows};
  const uint32_t flips = signs_of_four<kDim>(p.signs[2 * kv_head]);
  uint8_t* const page = key.page(kv_head);
  wait_for_predecessor();
  key.load();
  key.norm(p.rope.k_norm, p.rope.k_norm_bf16);
  key.turn();
  key.store();
  key.centre_and_store(0, kv_head);
  rotate_four<kDim>(flips, key.x);
  uint32_t codes[kDim / 8];
  uint16_t scale;
  const bool finite = encode_four<kDim, kBits>(key.x, codes, scale);
  if (key.is_there) store_keys<kDim, kBits>(codes, page + key.row.position % kPageTokens * p.shape.key_bytes());
  key.end(finite, 0, kv_head, scale, page + p.shape.key_scales_at());
}

/// Values of the quads that begin, in this pass, with one of four rows: of a prompt one.
template <int kDim, int kBits>
__device__ __forceinline__ void store_values_of_rows(const StoreCodesParams& p, int first, int kv_head) {
  // Lane 1 + i looks at row first + i; whether it goes on with the quad of the row before.
  const int lane = static_cast<int>(threadIdx.x) % 32, index = first - 1 + lane;
  const RowOnDevice row = p.rope.rows[min(max(index, 0), p.rope.n_rows - 1)];
  const int pages_before = __shfl_up_sync(kWholeWarp, row.pages, 1),
            position_before = __shfl_up_sync(kWholeWarp, row.position, 1);
  const bool is_row = index >= 0 && index < p.rope.n_rows;
  const unsigned rows = __ballot_sync(kWholeWarp, is_row);
  const unsigned goes_on =
      __ballot_sync(kWholeWarp, lane > 0 && is_row && index > 0 && row.pages == pages_before &&
                                    row.position == position_before + 1 && row.position % tq::kQuad != 0);
  const uint32_t flips = signs_of_four<kDim>(p.signs[2 * kv_head + 1]);
  wait_for_predecessor();
#pragma unroll 1
  for (int begin = 1; begin <= kVectors; ++begin) {
    if (!(rows >> begin & 1u) || (goes_on >> begin & 1u)) continue;
    const int n = __ffs(static_cast<int>(~(goes_on >> (begin + 1))));  // itself, and those that go on
    const int slot = __shfl_sync(kWholeWarp, row.position, begin) % tq::kQuad, behind = own_vector() - slot;
    const bool is_there = behind >= 0 && behind < n;
    const int from = begin + (is_there ? behind : 0);
    Head<kDim> value{p, {}, p.rope.n_heads + p.rope.kv.n_kv_heads + kv_head, is_there};
    value.row.row = __shfl_sync(kWholeWarp, row.row, from);
    value.row.position = __shfl_sync(kWholeWarp, row.position, from);
    value.row.pages = __shfl_sync(kWholeWarp, row.pages, from);
    uint8_t* const page = value.page(kv_head);
    value.load();
    value.centre_and_store(1, kv_head);
    rotate_four<kDim>(flips, value.x);
    uint32_t codes[kDim / 8];
    uint16_t scale;
    const bool finite = encode_four<kDim, kBits>(value.x, codes, scale);
    store_quad<kDim, kBits>(codes, ((1u << n) - 1) << slot, quad_of(p.shape, value.row.position % kPageTokens, page));
    value.end(finite, 1, kv_head, scale, page + p.shape.value_scales_at());
  }
}

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kWarps * 32) rope_and_store_quads_kernel(const __grid_constant__ StoreCodesParams p) {
  let_successor_start();
  // Keys and values, which take longest, come first.
  const int item = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int kv_heads = p.rope.kv.n_kv_heads, n_stored = ceil_div(p.rope.n_rows, kVectors) * 2 * kv_heads;
  if (item < n_stored) {
    const int first = item / (2 * kv_heads) * kVectors, which = item % (2 * kv_heads);
    if (which < kv_heads) return store_keys_of_rows<kDim, kKeyBits>(p, first, which);
    return store_values_of_rows<kDim, kValueBits>(p, first, which - kv_heads);
  }
  const int of_row = ceil_div(p.rope.n_heads, kVectors), at = item - n_stored;
  if (at / of_row >= p.rope.n_rows) return wait_for_predecessor();
  turn_queries<kDim>(p, at / of_row, at % of_row * kVectors);
}

}  // namespace

bool takes_quads(const StoreCodesParams& p) {
  const KvLayer& kv = p.rope.kv;
  const auto fits = [](const void* data, uint64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 16 == 0;
  };
  const int n_of_prompts = p.rope.n_rows - p.rope.n_single;
  return n_of_prompts >= kLeastRows && 2 * n_of_prompts >= p.rope.n_rows && (kv.head_dim == 64 || kv.head_dim == 128) &&
         (p.shape.key_bits == 4 || p.shape.key_bits == 8) && (p.shape.value_bits == 4 || p.shape.value_bits == 8) &&
         fits(kv.data, kv.page_stride) && fits(kv.exact, kv.exact_stride) &&
         fits(p.rope.qkv.data, static_cast<uint64_t>(p.rope.qkv.stride) * sizeof(float));
}

void rope_and_store_quads(const StoreCodesParams& p, cudaStream_t stream) {
  const int items =
      ceil_div(p.rope.n_rows, kVectors) * 2 * p.rope.kv.n_kv_heads + p.rope.n_rows * ceil_div(p.rope.n_heads, kVectors);
  with_code_shape(p.shape, [&](auto of) {
    using Shape = decltype(of);
    launch("rope_and_store of codes", rope_and_store_quads_kernel<Shape::kDim, Shape::kKeyBits, Shape::kValueBits>,
           dim3(static_cast<unsigned>(ceil_div(items, kWarps))), kWarps * 32, 0, stream, p);
  });
}

}  // namespace firstlight::cuda
