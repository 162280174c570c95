// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/tensor_maps_cuda.cuh"

namespace firstlight::cuda {

std::string why_not_hoppers(const GpuShape& gpu) {
  if (gpu.as_any) return "not wanted";
  if (gpu.capability == 90) return "";
  return str("compute capability ", gpu.capability / 10, ".", gpu.capability % 10, ", not 9.0");
}

TensorMaps::TensorMaps(const GpuShape& gpu) {
  if (gpu.capability < 90) {
    why_not_ = str("compute capability ", gpu.capability / 10, ".", gpu.capability % 10, ", below 9.0");
    return;
  }
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t code =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode_, 12000, cudaEnableDefault, &found);
  if (code == cudaSuccess && found == cudaDriverEntryPointSuccess) return;
  cudaGetLastError();
  why_not_ = "the driver has no tensor maps";
}

CUtensorMap TensorMaps::of(const void* data, int64_t rows, int64_t columns, int box_rows,
                           CUtensorMapL2promotion promotion) const {
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                   strides[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult code = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode_)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS)
    throw Error(ErrorKind::device, str("map a matrix [", rows, ", ", columns, "]: the driver's code ", int{code}));
  return map;
}

}  // namespace firstlight::cuda
