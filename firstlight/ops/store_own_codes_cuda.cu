// SPDX-License-Identifier: Apache-2.0
// Codes of the tokens that a step's attention has stored exactly, of many layers at once: a warp a key or value. In a
// step nobody waits for them, so they need not be made layer by layer.
#include "firstlight/ops/codes_store_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 4;

template <int kDim, int kBits>
__device__ bool store_value(const tq::PageShape& shape, const float (&y)[kDim / 32], int slot, uint8_t* page) {
  Quad<kDim, kBits> quad;
  quad.load(quad_of(shape, slot, page));
  const bool finite = encode_value<kDim, kBits>(shape, y, slot, quad, page);
  quad.store(quad_of(shape, slot, page));
  return finite;
}

template <int kDim>
__global__ void store_own_codes_kernel(const __grid_constant__ StoreOwnsParams p) {
  let_successor_start();
  wait_for_predecessor();
  const int item = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int of_row = 2 * p.n_kv_heads, layer = item / (p.n_rows * of_row), in_layer = item % (p.n_rows * of_row);
  if (layer >= p.n_layers) return;
  const int side = in_layer % of_row / p.n_kv_heads, kv_head = in_layer % p.n_kv_heads;
  const RowOnDevice row = p.rows[in_layer / of_row];
  const uint32_t flips = lane_signs<kDim>(p.layers[layer].signs[2 * kv_head + side]);
  const float* own = p.own + layer * p.layer_floats + int64_t{in_layer} * kDim + threadIdx.x % 32;
  float x[kDim / 32];
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) x[j] = own[32 * j];
  const auto number = static_cast<uint64_t>(p.pages[row.pages + row.position / kPageTokens]);
  auto* page =
      reinterpret_cast<uint8_t*>(p.layers[layer].data) + number * p.page_stride + int64_t{kv_head} * p.shape.bytes();
  const int slot = row.position % kPageTokens;
  rotate<kDim>(flips, x);
  const bool finite = side == 0 ? (p.shape.key_bits == 4 ? encode_key<kDim, 4>(p.shape, x, slot, page)
                                                         : encode_key<kDim, 8>(p.shape, x, slot, page))
                                : (p.shape.value_bits == 4 ? store_value<kDim, 4>(p.shape, x, slot, page)
                                                           : store_value<kDim, 8>(p.shape, x, slot, page));
  if (!finite) report({row.position, kv_head, side}, p.fault, p.fault_seen);
}

}  // namespace

void store_own_codes(const StoreOwnsParams& p, cudaStream_t stream) {
  const int64_t items = int64_t{p.n_layers} * p.n_rows * 2 * p.n_kv_heads;
  launch("codes of a step's own tokens",
         p.shape.head_dim == 64 ? store_own_codes_kernel<64> : store_own_codes_kernel<128>,
         dim3(static_cast<unsigned>((items + kWarps - 1) / kWarps)), kWarps * 32, 0, stream, p);
}

}  // namespace firstlight::cuda
