// SPDX-License-Identifier: Apache-2.0
// The calls of NCCL (2.x) that sums take, declared by ourselves: the library, 200 MB, is opened only where it is used.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace firstlight::cuda {

/// Every call returns 0 or a status; text() makes words of it.
struct NcclApi {
  struct Id {
    std::array<char, 128> bytes{};
  };
  static constexpr int kF32 = 7, kSum = 0;

  int (*get_version)(int* version) = nullptr;
  int (*get_unique_id)(Id* id) = nullptr;
  int (*init_rank)(void** comm, int size, Id id, int rank) = nullptr;
  int (*all_reduce)(const void* from, void* to, size_t n, int type, int operation, void* comm, cudaStream_t) = nullptr;
  const char* (*error_string)(int status) = nullptr;

  /// Opens libnccl.so.2, for good, with its NVLink multicast off (it sets NCCL_NVLS_ENABLE=0 in the environment).
  /// Throws Error{not_found} with the loader's reason, or Error{unsupported} naming what the library lacks.
  static NcclApi open();
  std::string version() const;  ///< "2.27.7"
  /// Throws Error{device} unless `status` is success.
  void check(int status, std::string_view what) const;
};

}  // namespace firstlight::cuda
