// SPDX-License-Identifier: Apache-2.0
// Attention of single rows as a kernel of its own: two blocks a multiprocessor, so that 192 KB are on their way to it
// at any time.
#include <algorithm>

#include "firstlight/ops/attend_item_cuda.cuh"

namespace firstlight::cuda {

namespace {

template <int kDim>
constexpr int kStages = 384 / kDim;
template <int kDim>
using Ring = KeyRing<kDim, kStages<kDim>>;

template <int kDim>
__global__ void __launch_bounds__(kSinglesWarps * 32, kSinglesAtOnce)
    attend_singles_kernel(const __grid_constant__ SinglesParams p) {
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ float maxima[kSinglesWarps][kHeadsAtOnce], divisors[kSinglesWarps][kHeadsAtOnce];
  let_successor_start();
  const int heads = p.heads;
  const Meeting<kDim> meeting{reinterpret_cast<float*>(shared + kSinglesWarps * Ring<kDim>::kBytes), maxima, divisors,
                              heads};
  const int each = pages_each(p);
  Item item;
  for (int number = static_cast<int>(blockIdx.x); find_item(p, each, number, item);
       number += static_cast<int>(gridDim.x)) {
    attend_item<kDim, kStages<kDim>>(p, item, static_cast<uint32_t>(__cvta_generic_to_shared(shared)), meeting,
                                     [] { wait_for_predecessor(); });
    if (item.n_chunks == 1 || !comes_last(p, item)) continue;
    float* scratch = reinterpret_cast<float*>(shared);
    item.n_heads <= 4 ? merge_chunks<kDim, 4>(p, item, scratch) : merge_chunks<kDim, 8>(p, item, scratch);
  }
  wait_for_predecessor();
}

template <int kDim>
void start(const SinglesParams& p, cudaStream_t stream) {
  const int heads = p.heads;
  const size_t bytes = static_cast<size_t>(kSinglesWarps * Ring<kDim>::kBytes) +
                       static_cast<size_t>(kSinglesWarps * heads * Meeting<kDim>::kStride) * sizeof(float);
  check(cudaFuncSetAttribute(attend_singles_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "allow attention its shared memory");
  const int64_t most = int64_t{p.n_rows} * p.head_blocks * p.n_chunks;
  launch("attention of single rows", attend_singles_kernel<kDim>,
         dim3(static_cast<unsigned>(std::min<int64_t>(p.n_blocks, most))), kSinglesWarps * 32, bytes, stream, p);
}

}  // namespace

void attend_singles(const SinglesParams& params, cudaStream_t stream) {
  params.attend.kv.head_dim == 64 ? start<64>(params, stream) : start<128>(params, stream);
}

}  // namespace firstlight::cuda
