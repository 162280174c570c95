// SPDX-License-Identifier: Apache-2.0
// Products with Hopper's own instructions, and the choice between them and those by warps.
#include "firstlight/base/str.h"
#include "firstlight/ops/skinny_kernel_cuda.cuh"

namespace firstlight::cuda {

namespace {

/// So that a ring has two stages and more beside what 64 rows of a pair of slabs need.
constexpr int kLeastShared = 200 << 10;

std::string why_not_skinny(const GpuShape& gpu, const TensorMaps& maps) {
  if (!maps.why_not().empty() || gpu.shared_bytes >= kLeastShared) return maps.why_not();
  return str("a block has ", gpu.shared_bytes >> 10, " KB of shared memory, ", kLeastShared >> 10, " are needed");
}

}  // namespace

SkinnyProducts::SkinnyProducts(const GpuShape& gpu)
    : gpu_(gpu), maps_(gpu), why_not_(why_not_skinny(gpu, maps_)), why_by_warps_(why_not_hoppers(gpu)) {}

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
