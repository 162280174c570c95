// SPDX-License-Identifier: Apache-2.0
// A pass of few rows as a program that one kernel runs, a block a multiprocessor: a ring of weights in shared memory
// never drains between its operations. Here: the instructions, and who writes them down.
#pragma once
#include <cuda_bf16.h>

#include <vector>

#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/matvec_cuda.cuh"

namespace firstlight::cuda {

/// What is done with a product's two tiles of 16 rows of w.
enum class ResidentJoin : uint8_t { store, add, silu, rope };

/// x wᵀ in units of two tiles. Part p of unit u begins at row u / per * step + u % per * stride + p * delta of w and
/// ends below limit + p * limit_delta.
struct ResidentProduct {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const __nv_bfloat16* norm = nullptr;  ///< [k]: x is normed on its way in; null: it is not
  float eps = 0;
  const __nv_bfloat16* w = nullptr;
  const void* bias = nullptr;
  bool bias_is_bf16 = false;
  ResidentJoin join = ResidentJoin::store;
  int rows = 0, k = 0;
  int n_units = 0, per = 1, step = 0, stride = 0, delta = 0, limit = 0, limit_delta = 0;
  int first = 0;  ///< the block of unit 0; the others follow in turn
  float* out = nullptr;
  int64_t out_stride = 0;
  // Of a rope alone:
  const float2* angles = nullptr;
  const RowOnDevice* on_device = nullptr;
  const int32_t* pages = nullptr;
  KvLayer kv;
  int n_heads = 0;

  __host__ __device__ int row(int unit, int part) const {
    return unit / per * step + unit % per * stride + part * delta;
  }
  /// How many rows of w a part has: 0 to 16.
  __host__ __device__ int n_rows(int unit, int part) const {
    const int n = limit + part * limit_delta - row(unit, part);
    return n < 0 ? 0 : n > 16 ? 16 : n;
  }
};

struct alignas(16) ResidentInstruction {
  enum class Kind : uint8_t { product, attend } kind = Kind::product;
  ResidentProduct product;
  SinglesParams attend;
};

/// A norm that the products behind it do on their way.
struct ResidentNorm {
  Matrix<const float> x;
  Weight weight;
  float eps = 0;
  Matrix<float> out;
};

/// Instructions in order; each waits for the one before it, in all blocks. A norm's result exists for the products that
/// read it alone.
class ResidentProgram {
 public:
  /// Takes its device memory.
  ResidentProgram(const GpuShape& gpu, cudaStream_t stream);
  /// Whether the kernel can run on this GPU: as many blocks at once as multiprocessors.
  static bool fits(const GpuShape& gpu);
  bool empty() const { return list_.empty(); }
  bool launched() const { return launched_; }
  /// These return whether the instruction was taken; what was not taken must be launched behind the program.
  bool norm(const ResidentNorm& norm);
  bool product(const MatvecParams& params, Join join);
  /// Rotates and stores what the last product gave; taken into it.
  bool rope(Matrix<float> qkv, int n_heads, const float2* angles, const RowOnDevice* rows, const int32_t* pages,
            const KvLayer& kv);
  bool attend(const SinglesParams& params);
  /// The norm that no product has taken in; null if there is none.
  const ResidentNorm* open_norm() const { return norm_.out.data && !norm_taken_ ? &norm_ : nullptr; }
  void forget_norm() { norm_ = {}; }
  /// Whether nothing came behind the program that belonged into it; else why.
  bool whole() const { return !came_late_; }
  const char* why() const;
  /// Launches the kernel (into a capture), which reads the program where send() will have put it. `counter`: 4 bytes of
  /// device memory, which nobody else uses meanwhile.
  void launch(unsigned* counter, cudaStream_t stream);
  void send(cudaStream_t stream);

 private:
  bool can_take() const { return !launched_ && list_.size() < kMostInstructions; }
  void wrote(const float* out);
  int n_stages() const;

  static constexpr size_t kMostInstructions = 2048;
  const GpuShape gpu_;
  std::vector<ResidentInstruction> list_;
  DeviceScratch memory_;
  ResidentNorm norm_;
  bool norm_taken_ = false, launched_ = false, came_late_ = false;
  const float* lost_ = nullptr;  ///< a norm's result that was never written and can no longer be computed
  int head_dim_ = 0, next_block_ = 0;
};

}  // namespace firstlight::cuda
