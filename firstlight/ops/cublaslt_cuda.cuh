// SPDX-License-Identifier: Apache-2.0
// cuBLASLt, opened at run time and never linked: linked in the ordinary way its 0.5 GB cost 70 ms of every start.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <string>
#include <thread>

#include "firstlight/ops/cublaslt_api.cuh"
#include "firstlight/ops/cuda_memory.cuh"

namespace firstlight::cuda {

/// out [rows, n] = x [rows, k] wᵀ, f32; w [n, k] and x bf16, sums f32. All addresses and row lengths are multiples of
/// 16 bytes.
struct LtProduct {
  const void* x = nullptr;
  int64_t x_stride = 0, rows = 0;
  const void* w = nullptr;
  int64_t n = 0, k = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  bool add = false;  ///< out +=
};

/// One thread at a time.
class CublasLt {
 public:
  explicit CublasLt(int device_index) : device_index_(device_index) {}
  ~CublasLt();
  /// Begins to load the library on a thread of its own, where its first product is made, too: 0.13 s.
  void start_loading();
  /// Waits for the library. False: it cannot be had, why() says the reason.
  bool ready();
  const std::string& why() const { return why_; }
  /// Call ready() before. One algorithm for a weight's shape and a power of two of rows, the heuristic's first.
  void multiply(const LtProduct& product, cudaStream_t stream);

 private:
  struct Shape {
    int64_t n, k, rows_below, out_stride;
    bool add;
    auto operator<=>(const Shape&) const = default;
  };
  struct Layouts;

  void load() noexcept;
  void open();
  void warm_up();
  void check(int status, const char* what) const;
  const CublasLtApi::Algorithm& algorithm(const LtProduct& product);

  const int device_index_;
  std::thread loading_;
  bool asked_ = false;
  std::string why_;
  CublasLtApi lt_;
  void *handle_ = nullptr, *operation_ = nullptr, *preference_ = nullptr, *workspace_ = nullptr;
  std::map<Shape, CublasLtApi::Algorithm> algorithms_;
};

}  // namespace firstlight::cuda
