// SPDX-License-Identifier: Apache-2.0
// Products by warps: for GPUs that have boxes and clusters, but not Hopper's products of warpgroups.
#include "firstlight/ops/skinny_kernel_cuda.cuh"

namespace firstlight::cuda {

void skinny_by_warps(const SkinnyProduct& product, const GpuShape& gpu, const TensorMaps& maps, cudaStream_t stream) {
  start<true>(product, gpu, maps, stream);
}

}  // namespace firstlight::cuda
