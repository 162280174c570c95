// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: one stream, the pass's tables, its scratch, and the recorded passes. Op x is x_cuda.cu.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/attend_hopper_cuda.cuh"
#include "firstlight/ops/codes_pass_cuda.cuh"
#include "firstlight/ops/cublaslt_cuda.cuh"
#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/cuda_ops.h"
#include "firstlight/ops/cuda_pass.cuh"
#include "firstlight/ops/draw_cuda.cuh"
#include "firstlight/ops/product_cuda.cuh"
#include "firstlight/ops/skinny_queue_cuda.cuh"

namespace firstlight {

class CudaOps final : public Ops {
 public:
  CudaOps(Device device, const CudaOpsOptions& options);
  ~CudaOps() override;
  std::string_view name() const override { return name_; }
  bool begin(const PassRows& rows, bool weights_ready) override;
  void end() override;
  void logits(Matrix<const float> x, const Weight& w, Matrix<float> out) override;
  void likeliest(Matrix<const float> x, const Weight& w, int first_id, std::span<Likeliest> out) override;
  void draw(Matrix<const float> x, const Weight& w, std::span<const Draw> draws, std::span<int> out,
            const LogitsOfRanks* ranks) override;
  void keep_rows(std::span<const AttentionSpan> spans, Matrix<float>& m) override;
  void embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) override;
  void rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) override;
  void matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override;
  void matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override;
  void gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) override;
  void rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                      std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                      const KvLayer& kv) override;
  void attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
              Matrix<float> out) override;

 private:
  /// A pass that can be recorded: what its kernels depend on beside addresses.
  struct PassShape {
    int n_rows = 0;
    enum class Result : uint8_t { none, logits, likeliest, drawn } result = Result::none;
    int64_t page_bucket = 0;  ///< a power of two ≥ the pages that any row sees
    auto operator<=>(const PassShape&) const = default;
  };
  enum class State { idle, plain, recording, replaying };
  /// Rows of logits on their way: from staging to the caller's memory at the end of the pass.
  struct Delivery {
    const float* from = nullptr;
    Matrix<float> to;
  };
  struct Recording {
    bool seen = false;  ///< ran plainly once, so that all memory has its size
    cudaGraphExec_t graph = nullptr;
    std::vector<Delivery> deliveries;  ///< to.data: null
    std::vector<int64_t> offsets;      ///< of each one's destination from PassRows::logits
    size_t n_picked = 0, n_drawn = 0;
  };
  /// What the plan of single rows' attention was made for.
  struct PlannedSingles {
    const cuda::RowOnDevice* rows = nullptr;
    int n_rows = 0, head_blocks = 0, most_chunks = 0;
    bool operator==(const PlannedSingles&) const = default;
  };
  /// The bf16 copy that a producer made beside its f32 result.
  struct Twin {
    const float* of = nullptr;
    int64_t rows = 0, cols = 0, stride = 0;
  };

  void abandon();            // what a pass that threw has left
  void forget_recordings();  // addresses have changed
  void deliver();            // staged logits, once they are there
  void reserve(cuda::DeviceScratch& scratch, int64_t bytes);
  void multiply(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out, cuda::Join join);
  /// In all passes, recorded or not: a row's bits must not depend on that.
  bool folds_norms() const { return options_.fold_norms && state_ != State::idle; }
  void launch_waiting();  // the product or rotation that does
  void store_owns();      // what attention has left to become codes: beside the head's first weights, else at the end
  void launch_rope(const cuda::RopeParams& params);
  /// The angles by which attention shall turn its rows; null: they are turned, what waited of others is launched.
  const float2* take_rope(const cuda::AttendParams& attend, const cuda::RowSet& set);
  bool fold_norm(const cuda::NormOp& norm);
  void unfold_norm(const float* x);  // before anything but a product that can wait reads x
  bool multiply_skinny(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out, cuda::Join join);
  bool multiply_by_library(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out,
                           cuda::Join join);
  const __nv_bfloat16* rounded(Matrix<const float> x);
  __nv_bfloat16* twin_for(Matrix<float> out);  // where its producer may write one; null: no product will want it
  void written(Matrix<float> out);             // its twin, if any, is stale
  const float2* angles(std::span<const double> inverse_frequencies, const cuda::RowSet& set);
  cuda::SinglesParams singles(const cuda::AttendParams& params, const cuda::RowSet& set);
  void attend_codes(const cuda::AttendParams& params, const cuda::RowSet& set);
  int64_t pages_bound(const cuda::RowSet& set) const;
  void compose_name();
  /// What all ranks do with a pass that can be recorded here as far as `mine`: 0 run it plainly, 1 record, 2 replay.
  int agree(const PassRows& rows, int mine);
  void launch_norm(const cuda::NormOp& norm);

  const Device device_;
  const CudaOpsOptions options_;
  std::string name_, gpu_name_, why_no_library_;
  cuda::GpuShape gpu_;
  const Stream own_stream_;
  cudaStream_t const stream_;
  cuda::CublasLt cublaslt_;
  std::optional<cuda::SkinnyProducts> skinny_;
  std::optional<cuda::HopperAttention> hopper_attention_;
  cuda::SkinnyQueue queue_;
  cuda::RopeOfPass rope_;
  cuda::PassTables pass_;
  cuda::CodesOfPass codes_;
  cuda::DrawTables draw_tables_;
  cuda::DeviceScratch twin_memory_[2], products_, partials_, plan_memory_, logits_, picks_;
  cuda::PinnedScratch staging_, pick_staging_;
  Twin twin_;
  PlannedSingles planned_;
  int twin_at_ = 0;  ///< of twin_memory_: where twin_ lies
  State state_ = State::idle;
  PassShape shape_;
  Matrix<float> pass_logits_;
  std::span<Likeliest> pass_likeliest_, picked_;
  std::span<int> pass_drawn_, drawn_;
  Recording* recording_ = nullptr;
  std::function<int(int)> least_of_ranks_;  // of the pass that is recorded
  std::map<PassShape, Recording> recordings_;
  std::vector<Delivery> deliveries_;
  int64_t staged_floats_ = 0;
};

}  // namespace firstlight
