// SPDX-License-Identifier: Apache-2.0
// The calls and numbers of cuBLASLt (12 and 13) that one bf16 product takes, declared by ourselves: the library is
// opened at run time, and its headers come in a package of 400 MB.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace firstlight::cuda {

/// Handles are opaque; every call returns 0 or a status.
struct CublasLtApi {
  struct Algorithm {
    uint64_t data[8];
  };
  struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
  };
  static constexpr int kF32 = 0, kBf16 = 14;  ///< cudaDataType
  static constexpr int kComputeF32 = 68;      ///< cublasComputeType_t
  static constexpr int kTransposed = 1;       ///< cublasOperation_t
  static constexpr int kTransposeA = 3;       ///< cublasLtMatmulDescAttributes_t
  static constexpr int kMostWorkspace = 1;    ///< cublasLtMatmulPreferenceAttributes_t …
  static constexpr int kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7, kAlignmentD = 8;

  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*desc_create)(void** desc, int compute, int scale_type) = nullptr;
  int (*desc_destroy)(void* desc) = nullptr;
  int (*desc_set)(void* desc, int attribute, const void* value, size_t bytes) = nullptr;
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) = nullptr;
  int (*layout_destroy)(void* layout) = nullptr;
  int (*preference_create)(void** preference) = nullptr;
  int (*preference_destroy)(void* preference) = nullptr;
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes) = nullptr;
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int n_wanted,
                   Heuristic* results, int* n_found) = nullptr;
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                const Algorithm*, void* workspace, size_t workspace_bytes, cudaStream_t) = nullptr;

  /// Opens libcublasLt.so.13 or .12, for good. Throws Error{not_found} with the loader's reason, or Error{unsupported}
  /// naming what the library lacks.
  static CublasLtApi open();
};

}  // namespace firstlight::cuda
