// SPDX-License-Identifier: Apache-2.0
// Products with Hopper's own instructions, and the choice between them and those by warps.
#include "firstlight/ops/skinny_kernel_cuda.cuh"

namespace firstlight::cuda {

SkinnyProducts::SkinnyProducts(const GpuShape& gpu) : gpu_(gpu), maps_(gpu), why_by_warps_(why_not_hoppers(gpu)) {}

int SkinnyProducts::n_squares(int n) const {
  return static_cast<int>(skinny_shape(Join::add, n, gpu_.n_sms).n_tiles(n));
}

void SkinnyProducts::multiply(const SkinnyProduct& product, cudaStream_t stream) const {
  if (why_by_warps_.empty()) {
    start<false>(product, gpu_, maps_, stream);
  } else {
    skinny_by_warps(product, gpu_, maps_, stream);
  }
}

}  // namespace firstlight::cuda
