// SPDX-License-Identifier: Apache-2.0
// A pass of few rows as a program that one kernel runs, a block a multiprocessor: a ring of weights in shared memory
// never drains between its operations. Here: the instructions, and who writes them down.
#pragma once
#include <cuda_bf16.h>

#include <memory>
#include <vector>

#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/matvec_cuda.cuh"

namespace firstlight::cuda {

/// What is done with a product's rows of w.
enum class ResidentJoin : uint8_t { store, add, silu, rope };

/// A product's x as its warps take it: each value as the sum of two bf16, high + low; and where the values still lack a
/// norm's scale, their squares' sums by sixteens.
struct ResidentTerms {
  __nv_bfloat16* data = nullptr;  ///< [2, kMatvecRows, k]: high terms, then low
  float* squares = nullptr;       ///< [kMatvecRows, ceil(k / 16)], maybe null
  int k = 0;
  __host__ __device__ int n_squares() const { return (k + 15) / 16; }
};

/// x wᵀ in units of 16 rows of w: part p of unit u is the 8 from u / per * step + u % per * stride + p * delta on, as
/// far as they are below limit + p * limit_delta. Blocks take units as they come to them.
struct ResidentProduct {
  ResidentTerms x;  ///< squares: the result is scaled by the norm of these
  float eps = 0;
  const __nv_bfloat16* w = nullptr;
  const void* bias = nullptr;
  bool bias_is_bf16 = false;
  ResidentJoin join = ResidentJoin::store;
  int rows = 0, k = 0;
  int n_units = 0, per = 1, step = 0, stride = 0, delta = 0, limit = 0, limit_delta = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  ResidentTerms terms;                     ///< of out, for the product behind; data null: nobody wants them
  const __nv_bfloat16* weights = nullptr;  ///< [n] of the norm between, with which terms are multiplied; maybe null
  // Of a rope alone:
  const float2* angles = nullptr;
  const RowOnDevice* on_device = nullptr;
  const int32_t* pages = nullptr;
  KvLayer kv;
  int n_heads = 0;

  __host__ __device__ int row(int unit, int part) const {
    return unit / per * step + unit % per * stride + part * delta;
  }
  /// How many rows of w a part has: 0 to 8.
  __host__ __device__ int n_rows(int unit, int part) const {
    const int n = limit + part * limit_delta - row(unit, part);
    return n < 0 ? 0 : n > 8 ? 8 : n;
  }
};

/// Terms of an x that no instruction has written.
struct ResidentSplit {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int rows = 0;
  ResidentTerms terms;
  const __nv_bfloat16* weights = nullptr;  ///< as above
};

struct alignas(16) ResidentInstruction {
  enum class Kind : uint8_t { product, attend, split } kind = Kind::product;
  ResidentProduct product;
  SinglesParams attend;
  ResidentSplit split;
};

/// A norm that is done on the way to the products behind it: x goes to them times the weights, and what comes out of
/// them is scaled, so that nobody waits for the scale.
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
  static constexpr size_t kMostInstructions = 2048;
  /// The barrier's, and each instruction's.
  static constexpr size_t n_counters = 1 + kMostInstructions;
  /// Takes its device memory.
  ResidentProgram(const GpuShape& gpu, cudaStream_t stream);
  /// Whether the kernel can run on this GPU: as many blocks at once as multiprocessors.
  static bool fits(const GpuShape& gpu);
  /// Whether it has instructions for such pages.
  static bool takes(const KvLayer& kv);
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
  static const char* why();
  /// Launches the kernel (into a capture), which reads the program where send() will have put it. `counters`:
  /// n_counters of them in device memory, which nobody else uses meanwhile.
  void launch(unsigned* counters, cudaStream_t stream);
  void send(cudaStream_t stream);

 private:
  /// Terms that instructions have made, of a matrix that is still the same.
  struct Made {
    ResidentTerms terms;
    int capacity = 0;  ///< columns
    const float* of = nullptr;
    int64_t stride = 0;
    int rows = 0;
    const void* weights = nullptr;
  };
  bool can_take(size_t n = 1) const { return !launched_ && list_.size() + n <= kMostInstructions; }
  void wrote(const float* out);
  ResidentTerms terms_of(const float* x, int64_t stride, int rows, int k, const ResidentNorm* norm);
  void make_terms(const Made& made);
  int n_stages() const;
  bool has_few_rows() const;

  const GpuShape gpu_;
  std::vector<ResidentInstruction> list_;
  DeviceScratch memory_;
  std::vector<std::unique_ptr<DeviceScratch>> of_terms_;
  Made made_[2];  ///< in turn: an instruction writes one and reads the other
  int turn_ = 0;
  ResidentNorm norm_;
  bool norm_taken_ = false, launched_ = false, came_late_ = false;
  const float* lost_ = nullptr;  ///< a norm's result that was never written and can no longer be computed
  int head_dim_ = 0;
};

}  // namespace firstlight::cuda
