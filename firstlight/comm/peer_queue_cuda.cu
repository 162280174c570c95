// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "firstlight/comm/peer_cuda.cuh"
#include "firstlight/comm/peer_queue_cuda.h"
#include "firstlight/device/cuda.h"

namespace firstlight::peer {
namespace {

__global__ void sum_by_inbox_kernel(const __grid_constant__ Call call) {
  enter();
  sum_by_inbox(OnGpu{}, call);
}
template <int kMost>
__global__ void __launch_bounds__(256) sum_in_place_kernel(const __grid_constant__ Call call) {
  enter();
  sum_in_place<kMost>(OnGpu{}, call);
}
/// Blocks and threads are the same on all ranks: a block waits for its like.
void launch(void (*kernel)(Call), const Call& call, int64_t n_items, int n_threads, cudaStream_t stream) {
  if (n_items <= 0) return;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(std::clamp<int64_t>((n_items + n_threads - 1) / n_threads, 1, kMaxBlocks)));
  config.blockDim = dim3(static_cast<unsigned>(n_threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cuda::check(cudaLaunchKernelEx(&config, kernel, call), "queue a collective");
}

}  // namespace

uint64_t inbox_bytes(int size) {
  return 2 * static_cast<uint64_t>(size) * static_cast<uint64_t>(place_floats(size)) * sizeof(float);
}

void load_kernels() {
  cudaFuncAttributes attributes{};
  for (void (*kernel)(Call) :
       {&sum_by_inbox_kernel, &sum_in_place_kernel<2>, &sum_in_place_kernel<4>, &sum_in_place_kernel<8>}) {
    cuda::check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)),
                "load a collective's kernel");
  }
}

bool is_in_place(int64_t n, int size) { return n > place_floats(size); }

void queue_sum(const Call& call, cudaStream_t stream) {
  const int64_t n_vectors = (call.n + 3) / 4;
  if (!is_in_place(call.n, call.size)) {
    int n_threads = 128;  // the fewest with a vector each: 1 row of 4096 2.59 us, with 256 2.65; 32 rows 4.05
    while (n_threads < 1024 && n_vectors > int64_t{kMaxBlocks} * n_threads) n_threads *= 2;
    return launch(&sum_by_inbox_kernel, call, n_vectors, n_threads, stream);
  }
  constexpr int kThreads = 256;  // 2048 rows 106.7 us; with 128 108.1
  launch(call.size == 2   ? &sum_in_place_kernel<2>
         : call.size <= 4 ? &sum_in_place_kernel<4>
                          : &sum_in_place_kernel<8>,
         call, (n_vectors + call.size - 1) / call.size, kThreads, stream);
}

}  // namespace firstlight::peer
